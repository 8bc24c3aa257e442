#include "search/search.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <tuple>
#include <utility>

#include "core/random.h"
#include "search/list_scheduler.h"
#include "search/order_moves.h"

namespace pipert::search {
namespace {

// What is minimised is the figure. The walk goes by the energy, to which the ranks' mean span is added: the figure
// alone is level where a move helps one of several ranks that are equally slow.
struct Score {
  double figure = kForever;
  double energy = kForever;
};

constexpr double kMeanWeight = 0.5;
constexpr std::chrono::milliseconds kWatchEvery{20};
constexpr double kHot = 2e-4;  // the first temperature, as a share of the figure

class Searcher {
 public:
  Searcher(const Problem& problem, const Effort& effort, const Watch& watch)
      : problem_(problem), effort_(effort), watch_(watch), scheduler_(problem), clock_(problem), random_(effort.seed) {}

  Found run(const std::vector<Order>& starts) {
    const Order slow = one_by_one(problem_);
    offer(slow, score(slow));
    for (const Order& order : starts) {
      if (keeps_limits(order)) offer(order, score(order));
    }
    search_rules();
    search_orders();
    return std::move(best_);
  }

 private:
  bool keeps_limit(const Order& order, int32_t rank) const {
    return peak_memory(problem_, order[rank]) <= problem_.memory_limit[rank] * (1 + kMemoryTolerance);
  }

  bool keeps_limits(const Order& order) const {
    for (int32_t rank = 0; rank < problem_.num_ranks; ++rank) {
      if (!keeps_limit(order, rank)) return false;
    }
    return true;
  }

  Score score(const Order& order) {
    const Figures& figures = clock_.run(order);
    if (!figures.complete) return {};
    const double figure = effort_.by_span ? figures.longest_span : figures.makespan;
    return {figure, figure + kMeanWeight * figures.total_span / problem_.num_ranks};
  }

  void offer(const Order& order, const Score& score) {
    if (std::tie(score.figure, score.energy) >= std::tie(best_score_.figure, best_score_.energy)) return;
    best_score_ = score;
    best_.order = order;
    best_.figure = score.figure;
    if (best_.figure <= effort_.bound) stopped_ = true;
  }

  // Lets the caller look every now and then; this alone depends on the time.
  void watch(double spent) {
    const auto now = std::chrono::steady_clock::now();
    if (now - watched_at_ < kWatchEvery) return;
    watched_at_ = now;
    if (!watch_(best_.figure, spent)) stopped_ = true;
  }

  Score try_rules(const Rules& rules) {
    ++num_trials_;
    if (!scheduler_.run(rules, order_)) return {};
    const Score result = score(order_);
    offer(order_, result);
    watch(0.5 * static_cast<double>(num_trials_) / static_cast<double>(effort_.rule_trials));
    return result;
  }

  // Forwards that fit between a forward and its input gradient, when both travel without a wait.
  std::vector<double> round_trips() const {
    std::vector<double> forwards;
    for (const Queue& queue : scheduler_.queues()) {
      const int32_t microbatch = queue.microbatches.front();
      const int32_t cell = problem_.cell(queue.stage, microbatch);
      double trip = 0;
      for (int32_t stage = queue.stage + 1; stage < problem_.num_stages; ++stage) {
        const int32_t here = problem_.cell(stage, microbatch), before = problem_.cell(stage - 1, microbatch);
        const int32_t from = problem_.rank_of_cell[before], to = problem_.rank_of_cell[here];
        trip += problem_.time[problem_.op(Pass::FORWARD, here)] + problem_.time[problem_.op(Pass::INPUT_GRAD, here)] +
                problem_.latency[from * problem_.num_ranks + to] + problem_.latency[to * problem_.num_ranks + from];
      }
      const double forward = std::max(problem_.time[problem_.op(Pass::FORWARD, cell)], 1e-9);
      forwards.push_back(trip / (forward * static_cast<double>(scheduler_.queues_of_rank()[queue.rank].size())));
    }
    return forwards;
  }

  std::vector<Rules> grid() const {
    const std::vector<double> trips = round_trips();
    std::vector<Rules> all;
    for (const int32_t flags : {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}) {
      for (const double overrun : {0.0, 0.5, 1.0}) {
        for (const double share : {0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3, 1e9}) {
          Rules rules;
          for (const double trip : trips) {
            rules.ahead.push_back(
                static_cast<int32_t>(std::min<double>(problem_.num_microbatches, 1 + std::floor(share * trip + 0.5))));
          }
          rules.ranks.assign(problem_.num_ranks,
                             {overrun, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) == 0, (flags & 8) == 0});
          all.push_back(std::move(rules));
        }
      }
    }
    return all;
  }

  void change(Rules& rules) {
    const int32_t rank = random_.below(problem_.num_ranks);
    const int32_t reach = random_.below(4);  // this rank, those before it, those after it, or all
    const int32_t first = reach == 0 || reach == 2 ? rank : 0;
    const int32_t last = reach == 0 || reach == 1 ? rank : problem_.num_ranks - 1;
    const auto& queues = scheduler_.queues_of_rank()[rank];
    if (queues.empty()) return;
    const int32_t what = random_.below(10);
    const auto nth = static_cast<size_t>(random_.below(static_cast<int32_t>(queues.size())));
    const int32_t step = random_.below(2) == 0 ? -1 : 1;
    const double overrun = 0.25 * random_.below(5);
    for (int32_t changed = first; changed <= last; ++changed) {
      const auto& its_queues = scheduler_.queues_of_rank()[changed];
      RankRules& its_rules = rules.ranks[changed];
      switch (what) {
        case 0:
          its_rules.grad_first = !its_rules.grad_first;
          break;
        case 1:
          its_rules.recycle_first = !its_rules.recycle_first;
          break;
        case 2:
          its_rules.late_forward_first = !its_rules.late_forward_first;
          break;
        case 3:
          its_rules.late_grad_first = !its_rules.late_grad_first;
          break;
        case 4:
        case 5:
          its_rules.overrun = overrun;
          break;
        default:
          if (nth < its_queues.size()) {
            int32_t& ahead = rules.ahead[its_queues[nth]];
            ahead = std::clamp(ahead + step, 1, problem_.num_microbatches);
          }
      }
    }
  }

  void search_rules() {
    std::vector<std::pair<Score, Rules>> tried;
    for (Rules& rules : grid()) {
      if (stopped_ || num_trials_ >= effort_.rule_trials) break;
      const Score result = try_rules(rules);
      if (result.energy < kForever) tried.emplace_back(result, std::move(rules));
    }
    std::stable_sort(tried.begin(), tried.end(),
                     [](const auto& a, const auto& b) { return a.first.energy < b.first.energy; });
    const size_t num_climbs = std::min<size_t>(4, tried.size());
    const int64_t trials_left = effort_.rule_trials - num_trials_;
    for (size_t climb = 0; climb < num_climbs; ++climb) {
      auto [current, rules] = tried[climb];
      const int64_t until = effort_.rule_trials - trials_left * static_cast<int64_t>(num_climbs - 1 - climb) /
                                                      static_cast<int64_t>(num_climbs);
      while (!stopped_ && num_trials_ < until) {
        Rules changed = rules;
        change(changed);
        if (random_.below(3) == 0) change(changed);
        if (changed == rules) continue;
        const Score result = try_rules(changed);
        if (result.energy <= current.energy) {
          current = result;
          rules = std::move(changed);
        }
      }
    }
  }

  // Simulated annealing: moves that make the order slower are taken too, ever less often.
  void search_orders() {
    OrderMoves moves(problem_);
    Order order = best_.order;
    Score current = score(order);
    moves.look_at(order, clock_, deciding_rank());
    const double hot = kHot * current.figure;
    for (int64_t trial = 0; !stopped_ && trial < effort_.order_trials; ++trial) {
      const double spent = static_cast<double>(trial) / static_cast<double>(effort_.order_trials);
      watch(0.5 + 0.5 * spent);
      const Move move = moves.propose(order, random_);
      if (move.from == move.to) continue;
      apply(move, order);
      if (!keeps_limit(order, move.rank)) {
        undo(move, order);
        continue;
      }
      const Score result = score(order);
      const double temperature = hot * (1 - spent) * (1 - spent);
      if (result.energy <= current.energy - temperature * std::log(1 - random_.unit())) {
        current = result;
        offer(order, result);
        moves.look_at(order, clock_, deciding_rank());
      } else {
        undo(move, order);
      }
    }
  }

  int32_t deciding_rank() const { return effort_.by_span ? clock_.figures().longest_rank : clock_.figures().last_rank; }

  const Problem& problem_;
  const Effort& effort_;
  const Watch& watch_;
  ListScheduler scheduler_;
  OrderClock clock_;
  Random random_;
  Order order_;
  Found best_;
  Score best_score_;
  int64_t num_trials_ = 0;
  std::chrono::steady_clock::time_point watched_at_ = std::chrono::steady_clock::now();
  bool stopped_ = false;
};

}  // namespace

Found search(const Problem& problem, const std::vector<Order>& starts, const Effort& effort, const Watch& watch) {
  return Searcher(problem, effort, watch).run(starts);
}

}  // namespace pipert::search
