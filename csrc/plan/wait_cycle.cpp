#include "plan/wait_cycle.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

#include "core/error.h"

namespace pipert {
namespace {

constexpr int32_t none = -1;

// The rows that run at the same time as each row: the other end of a transfer, the other ranks' ops of a meeting.
std::vector<std::vector<int32_t>> partners(const Plan& plan) {
  std::vector<std::vector<int32_t>> result(plan.num_ops());
  std::map<std::pair<OpKind, int32_t>, std::vector<int32_t>> meetings;
  for (int32_t op = 0; op < plan.num_ops(); ++op) {
    if (const int32_t partner = plan.partner_of(op); partner != none) result[op].push_back(partner);
    if (is_meeting(plan.ops[op].kind)) meetings[{plan.ops[op].kind, plan.ops[op].microbatch}].push_back(op);
  }
  for (const auto& [_, rows] : meetings)
    for (const int32_t op : rows)
      std::copy_if(rows.begin(), rows.end(), std::back_inserter(result[op]),
                   [&](int32_t other) { return other != op; });
  return result;
}

// The plan on queues that each run their ops in row order, where both ends of a transfer, and a meeting, run at once.
class Queues {
 public:
  Queues(const Plan& plan, std::vector<int32_t> queue_of, size_t num_queues)
      : plan_(plan),
        partners_(partners(plan)),
        queue_of_(std::move(queue_of)),
        ops_(num_queues),
        position_(num_queues, 0),
        dep_position_(num_queues, 0),
        next_waiter_(num_queues, none),
        first_waiter_(plan.num_ops(), none),
        done_(plan.num_ops(), false),
        ready_(plan.num_ops(), false) {
    for (int32_t op = 0; op < plan.num_ops(); ++op) ops_[queue_of_[op]].push_back(op);
  }

  // Runs until nothing can move. Returns whether everything ran.
  bool run() {
    for (size_t queue = 0; queue < ops_.size(); ++queue) runnable_.push_back(static_cast<int32_t>(queue));
    while (!runnable_.empty()) {
      const int32_t queue = runnable_.back();
      runnable_.pop_back();
      advance(queue);
    }
    return std::all_of(done_.begin(), done_.end(), [](bool done) { return done; });
  }

  bool done(int32_t op) const { return done_[op]; }

  // Of the cycles that the stuck queues are in, the shortest: each op waits for the next, the last for the first.
  std::vector<int32_t> shortest_cycle() const {
    std::vector<int32_t> walk_of(plan_.num_ops(), none);
    std::vector<int32_t> best;
    for (size_t start = 0; start < ops_.size(); ++start) {
      if (head(static_cast<int32_t>(start)) == none) continue;
      std::vector<int32_t> walk;
      int32_t op = head(static_cast<int32_t>(start));
      for (; walk_of[op] == none; op = waits_for(op)) {
        walk_of[op] = static_cast<int32_t>(start);
        walk.push_back(op);
      }
      if (walk_of[op] != static_cast<int32_t>(start)) continue;  // ran into an earlier walk
      walk.erase(walk.begin(), std::find(walk.begin(), walk.end(), op));
      if (best.empty() || walk.size() < best.size()) best = walk;
    }
    PIPERT_CHECK(!best.empty(), "no queue is stuck");
    std::rotate(best.begin(), std::min_element(best.begin(), best.end()), best.end());
    return best;
  }

 private:
  // The op that a queue runs next; none when it has run all.
  int32_t head(int32_t queue) const {
    return position_[queue] < ops_[queue].size() ? ops_[queue][position_[queue]] : none;
  }

  // What keeps an op that has not run: an earlier one of its queue, a dependency, or one that must run with it.
  int32_t waits_for(int32_t op) const {
    const int32_t first = head(queue_of_[op]);
    if (op != first) return first;
    for (const int32_t dep : plan_.deps_of(op))
      if (!done_[dep]) return dep;
    return *std::find_if(partners_[op].begin(), partners_[op].end(), [&](int32_t other) { return !ready_[other]; });
  }

  void advance(int32_t queue) {
    for (int32_t op = head(queue); op != none; op = head(queue)) {
      if (!dependencies_done(queue, op)) return;
      ready_[op] = true;
      for (const int32_t partner : partners_[op])
        if (!ready_[partner]) return;
      for (const int32_t partner : partners_[op]) {
        finish(partner);
        runnable_.push_back(queue_of_[partner]);
      }
      finish(op);
    }
  }

  // If one is missing, puts the queue among those that it will wake.
  bool dependencies_done(int32_t queue, int32_t op) {
    const std::span<const int32_t> deps = plan_.deps_of(op);
    for (size_t& i = dep_position_[queue]; i < deps.size(); ++i) {
      if (done_[deps[i]]) continue;
      next_waiter_[queue] = first_waiter_[deps[i]];
      first_waiter_[deps[i]] = queue;
      return false;
    }
    return true;
  }

  void finish(int32_t op) {
    done_[op] = true;
    ++position_[queue_of_[op]];
    dep_position_[queue_of_[op]] = 0;
    for (int32_t queue = first_waiter_[op]; queue != none; queue = next_waiter_[queue]) runnable_.push_back(queue);
  }

  const Plan& plan_;
  std::vector<std::vector<int32_t>> partners_;  // per op
  std::vector<int32_t> queue_of_;               // per op
  std::vector<std::vector<int32_t>> ops_;       // this and the next three: per queue
  std::vector<size_t> position_;
  std::vector<size_t> dep_position_;   // how many dependencies of its head are known to be done
  std::vector<int32_t> next_waiter_;   // the next queue that waits for the same op
  std::vector<int32_t> first_waiter_;  // per op, a queue whose head waits for it
  std::vector<bool> done_;             // per op
  std::vector<bool> ready_;            // per op: that it waits for nothing, or only for those that run with it
  std::vector<int32_t> runnable_;      // queues to look at
};

constexpr size_t max_ranks_shown = 16;
constexpr size_t max_cells_shown = 16;
constexpr size_t max_links_shown = 24;
constexpr size_t context_cells = 2;

struct Row {
  int32_t rank;
  std::vector<std::string> cells;
};

// A rank's ops around those of the cycle or, if it has none, around the first that has not run.
Row make_row(const Plan& plan, const Queues& queues, int32_t rank, const std::vector<int32_t>& ops,
             const std::vector<int32_t>& cycle) {
  const auto in_cycle = [&](int32_t op) { return std::find(cycle.begin(), cycle.end(), op) != cycle.end(); };
  std::vector<size_t> centers;
  for (const int32_t op : cycle)
    if (plan.rank_of(op) == rank) centers.push_back(std::lower_bound(ops.begin(), ops.end(), op) - ops.begin());
  std::sort(centers.begin(), centers.end());
  if (centers.empty())
    centers.push_back(std::find_if(ops.begin(), ops.end(), [&](int32_t op) { return !queues.done(op); }) - ops.begin());

  Row row{rank, {}};
  size_t next = 0;
  for (const size_t center : centers) {
    if (row.cells.size() >= max_cells_shown) break;
    const size_t first = std::max(next, center - std::min(center, context_cells));
    const size_t last = std::min(ops.size(), center + context_cells + 1);
    if (first > next && first < last) row.cells.push_back("..");
    for (size_t i = first; i < last; ++i)
      row.cells.push_back(in_cycle(ops[i]) ? '>' + plan.text(ops[i]) + '<' : ' ' + plan.text(ops[i]) + ' ');
    next = std::max(next, last);
  }
  if (next < ops.size()) row.cells.push_back("..");
  return row;
}

std::string grid(const Plan& plan, const Queues& queues, const std::vector<int32_t>& cycle) {
  std::vector<std::vector<int32_t>> rank_ops(plan.num_ranks);
  for (int32_t op = 0; op < plan.num_ops(); ++op) rank_ops[plan.rank_of(op)].push_back(op);
  std::vector<int32_t> ranks(plan.num_ranks);
  for (int32_t rank = 0; rank < plan.num_ranks; ++rank) ranks[rank] = rank;
  std::vector<bool> involved(plan.num_ranks, false);
  for (const int32_t op : cycle) involved[plan.rank_of(op)] = true;
  std::stable_partition(ranks.begin(), ranks.end(), [&](int32_t rank) { return involved[rank]; });
  if (ranks.size() > max_ranks_shown) ranks.resize(max_ranks_shown);
  std::sort(ranks.begin(), ranks.end());

  std::vector<Row> rows;
  std::vector<size_t> widths;
  for (const int32_t rank : ranks) {
    rows.push_back(make_row(plan, queues, rank, rank_ops[rank], cycle));
    const std::vector<std::string>& cells = rows.back().cells;
    if (widths.size() < cells.size()) widths.resize(cells.size(), 0);
    for (size_t i = 0; i < cells.size(); ++i) widths[i] = std::max(widths[i], cells[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    std::string line = "  rank " + std::to_string(row.rank) + " |";
    for (size_t i = 0; i < row.cells.size(); ++i) {
      line.append(" ").append(row.cells[i]).append(widths[i] - row.cells[i].size(), ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  if (rows.size() < static_cast<size_t>(plan.num_ranks))
    text += "  (" + std::to_string(plan.num_ranks - rows.size()) + " more ranks)\n";
  return text;
}

std::string chain(const Plan& plan, const std::vector<int32_t>& cycle) {
  std::string text;
  for (size_t i = 0; i < cycle.size() && i < max_links_shown; ++i) text += plan.text(cycle[i]) + " waits for ";
  if (cycle.size() > max_links_shown)
    text.append("... (").append(std::to_string(cycle.size() - max_links_shown)).append(" more) waits for ");
  return text + plan.text(cycle[0]);
}

WaitCycle describe(const Plan& plan, const Queues& queues, const std::string& where) {
  const std::vector<int32_t> cycle = queues.shortest_cycle();
  return {cycle, "deadlock at recv_depth " + std::to_string(plan.recv_depth) + where +
                     ": the >marked< ops wait for each other (a row: a rank's ops in order)\n" +
                     grid(plan, queues, cycle) + chain(plan, cycle)};
}

}  // namespace

WaitCycle find_wait_cycle(const Plan& plan) {
  Queues lanes(plan, plan.op_lane, plan.lanes.size());
  if (!lanes.run()) return describe(plan, lanes, "");
  std::vector<int32_t> rank_of(plan.num_ops());
  for (int32_t op = 0; op < plan.num_ops(); ++op) rank_of[op] = plan.rank_of(op);
  Queues ranks(plan, std::move(rank_of), plan.num_ranks);
  PIPERT_CHECK(!ranks.run(), "the rows are a valid order");
  return describe(plan, ranks, ", where a rank's lanes share one queue");
}

}  // namespace pipert
