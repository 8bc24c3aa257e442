#include "plan/vocabulary.h"

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "plan/fault.h"
#include "plan/waits.h"

namespace pipert {
namespace {

using enum OpKind;

constexpr std::array kinds = {EMBED, VEMBED, VBCAST, SCORE, VSTATS, VGRAD, SCORE_W, VEMBED_GRAD, EMBED_W};

bool is_vocabulary(OpKind kind) { return std::find(kinds.begin(), kinds.end(), kind) != kinds.end(); }
bool is_of_embedding(OpKind kind) { return kind == EMBED || kind == VEMBED || kind == VEMBED_GRAD || kind == EMBED_W; }
bool is_of_gradient(OpKind kind) { return kind == VGRAD || kind == SCORE_W || kind == VEMBED_GRAD || kind == EMBED_W; }

class VocabularyCheck {
 public:
  VocabularyCheck(const Plan& plan, const WorkTable& table) : plan_(plan), table_(table) {
    rows_.assign(op_kind_table.size() * plan.num_ranks * plan.num_microbatches, -1);
    for (int32_t op = 0; op < plan.num_ops(); ++op) {
      const OpKind kind = plan.ops[op].kind;
      if (!is_vocabulary(kind)) continue;
      int32_t& row = row_of(kind, plan.rank_of(op), plan.ops[op].microbatch);
      if (row >= 0) fail(plan, op, "it once on its rank", name_of(plan, row) + " before it");
      row = op;
      (is_of_embedding(kind) ? has_embedding_ : has_output_) = true;
    }
  }

  void run() {
    if (!has_embedding_ && !has_output_) return;
    for (const OpKind kind : kinds) check_complete(kind);
    for (int32_t microbatch = 0; microbatch < plan_.num_microbatches; ++microbatch) {
      for (const OpKind kind : kinds)
        if (is_meeting(kind)) check_adjacent(kind, microbatch);
      for (int32_t rank = 0; rank < plan_.num_ranks; ++rank) add_needs(rank, microbatch);
      if (has_embedding_) add_needs_of_embedding(microbatch);
      if (has_output_) add_needs_of_output(microbatch);
    }
    check_algorithm();
    check_needs();
  }

 private:
  struct Need {
    int32_t op;
    int32_t needed;
    const char* why;
  };

  int32_t& row_of(OpKind kind, int32_t rank, int32_t microbatch) {
    return rows_[(static_cast<size_t>(kind) * plan_.num_ranks + rank) * plan_.num_microbatches + microbatch];
  }
  bool expects(OpKind kind) const {
    return (is_of_embedding(kind) ? has_embedding_ : has_output_) && !(is_of_gradient(kind) && table_.forward_only());
  }

  void check_complete(OpKind kind) {
    const bool expected = expects(kind);
    for (int32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      for (int32_t microbatch = 0; microbatch < plan_.num_microbatches; ++microbatch) {
        const int32_t row = row_of(kind, rank, microbatch);
        const std::string text = to_text(kind, rank, microbatch);
        if (expected && row < 0)
          fail(rank, text, "expected " + text + ", as the vocabulary is split over all ranks, found none");
        if (!expected && row >= 0) fail(plan_, row, "no gradient in a plan without backward", "it");
      }
    }
  }

  void check_adjacent(OpKind kind, int32_t microbatch) {
    const int32_t first = row_of(kind, 0, microbatch);
    for (int32_t rank = 1; first >= 0 && rank < plan_.num_ranks; ++rank) {
      const int32_t row = row_of(kind, rank, microbatch);
      if (row != first + rank)
        fail(plan_, row, "it as op " + std::to_string(first + rank) + ", adjacent to that of the ranks before", "it");
    }
  }

  void need(int32_t op, int32_t needed, const char* why) {
    if (op >= 0 && needed >= 0) needs_.push_back({op, needed, why});
  }

  // What a rank's own passes need of each other.
  void add_needs(int32_t rank, int32_t microbatch) {
    const auto row = [&](OpKind kind) { return row_of(kind, rank, microbatch); };
    need(row(VEMBED), row(EMBED), "which looks up what it sums");
    need(row(EMBED_W), row(VEMBED_GRAD), "which brings its gradient");
    need(row(SCORE), row(VBCAST), "which brings its input");
    need(row(VSTATS), row(SCORE), "which makes what it gathers");
    need(row(SCORE_W), row(VSTATS), "which brings the statistics of all shards");
    need(row(VGRAD), row(VSTATS), "which brings the statistics of all shards");
    if (row(SCORE_W) < row(VGRAD)) need(row(VGRAD), row(SCORE_W), "which makes what it sums");
  }

  void add_needs_of_embedding(int32_t microbatch) {
    const int32_t rank = plan_.rank_of(0, microbatch);
    const StageWork& first = table_.at(0, microbatch);
    need(first.forward_row(), row_of(VEMBED, rank, microbatch), "which brings its input");
    if (table_.forward_only()) return;
    need(row_of(VEMBED_GRAD, rank, microbatch), first.grad_row(), "which makes what it sends");
  }

  void add_needs_of_output(int32_t microbatch) {
    const int32_t stage = plan_.num_stages - 1;
    const int32_t rank = plan_.rank_of(stage, microbatch);
    const StageWork& last = table_.at(stage, microbatch);
    need(row_of(VBCAST, rank, microbatch), last.forward_row(), "which makes what it sends");
    if (table_.forward_only()) return;
    need(last.grad_row(), row_of(VGRAD, rank, microbatch), "which brings its gradient");
  }

  // T before VGRAD on all ranks and for all microbatches (Algorithm 1), or after it on all (Algorithm 2).
  void check_algorithm() {
    if (!has_output_ || table_.forward_only()) return;
    const bool first_is_early = row_of(SCORE_W, 0, 0) < row_of(VGRAD, 0, 0);
    for (int32_t rank = 0; rank < plan_.num_ranks; ++rank) {
      for (int32_t microbatch = 0; microbatch < plan_.num_microbatches; ++microbatch) {
        const int32_t grad = row_of(VGRAD, rank, microbatch), late = row_of(SCORE_W, rank, microbatch);
        if ((late < grad) != first_is_early)
          fail(plan_, late,
               std::string(first_is_early ? "it before " : "it after ") + name_of(plan_, grad) + ", as " +
                   plan_.text(row_of(SCORE_W, 0, 0)),
               "the other algorithm");
      }
    }
  }

  void check_needs() {
    std::stable_sort(needs_.begin(), needs_.end(), [](const Need& a, const Need& b) { return a.op < b.op; });
    Waits waits(plan_);
    auto next = needs_.begin();
    for (int32_t op = 0; op < plan_.num_ops(); ++op) {
      waits.take(op);
      for (; next != needs_.end() && next->op == op; ++next) waits.require(op, next->needed, next->why);
    }
  }

  const Plan& plan_;
  const WorkTable& table_;
  bool has_embedding_ = false, has_output_ = false;
  std::vector<int32_t> rows_;  // per (kind, rank, microbatch); -1: there is none
  std::vector<Need> needs_;
};

}  // namespace

void check_vocabulary(const Plan& plan, const WorkTable& table) {
  const auto is_here = [](const Op& op) { return is_vocabulary(op.kind); };
  if (std::any_of(plan.ops.begin(), plan.ops.end(), is_here)) VocabularyCheck(plan, table).run();
}

}  // namespace pipert
