#include "executor/progress.h"

#include <utility>

#include "core/error.h"

namespace pipert {

void throw_failure(const Failure& failure, const Plan& plan, const Progress& progress) {
  const bool waits = progress.awaited.load(std::memory_order_relaxed) >= 0;
  const int32_t op = progress.op();
  const int64_t step = progress.step.load(std::memory_order_relaxed);
  ErrorContext context{.rank = failure.rank, .op = failure.op, .step = step};
  std::string message = failure.text;
  if (op >= 0 && (failure.kind == FailureKind::kPeerLost || failure.op.empty())) {
    context.op = plan.text(op);
    message += "; rank " + std::to_string(plan.rank_of(op)) + (waits ? " was waiting for " : " stood at ") + context.op;
  }
  message += " in step " + std::to_string(step);
  switch (failure.kind) {
    case FailureKind::kPeerLost:
      throw PeerLost(message, std::move(context));
    case FailureKind::kTransport:
      throw TransportError(message, std::move(context));
    case FailureKind::kTimeout:
      throw LaneTimeout(message, std::move(context));
    case FailureKind::kAborted:
      break;
  }
  throw Error(message, std::move(context));
}

}  // namespace pipert
