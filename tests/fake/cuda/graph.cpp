#include "graph.h"

#include <memory>
#include <thread>

#include "settings.h"
#include "stream.h"

namespace fake_cuda {
namespace {

class Replay : public Shared {
 public:
  explicit Replay(Exec& exec) : graph_(exec.graph), number_(exec.num_launches++), before_(exec.last_launch) {
    exec.last_launch = finished_;
    for (const Node& node : graph_->nodes) work_.push_back(work_of(node));
    done_ = std::make_unique<Count[]>(work_.size());
  }

  void run() {
    if (before_) before_->wait();
    if (settings().max_connections == 1) {
      run_in_capture_order();
    } else {
      run_branches();
    }
    finished_->complete();
  }

 private:
  static Work work_of(const Node& node) {
    if (node.external_record) {
      const Ref<Record> record = make<Record>();
      node.external_record->latest = record;
      node.external_record->capture = {};
      return [record] { record->complete(); };
    }
    if (node.external_wait) {
      const Ref<Record> record = node.external_wait->latest;
      if (!record) return [] {};
      return [record] { record->wait(); };
    }
    return node.work;
  }

  void run_in_capture_order() {
    Jitter jitter(number_);
    for (const Work& work : work_) fake_cuda::run(work, jitter);
  }

  void run_branches() {
    std::vector<std::thread> threads;
    for (uint32_t branch = 1; branch < graph_->num_branches; ++branch) {
      threads.emplace_back([this, branch] { run_branch(branch); });
    }
    run_branch(0);
    for (std::thread& thread : threads) thread.join();
  }

  void run_branch(uint32_t branch) {
    Jitter jitter(number_ * graph_->num_branches + branch);
    for (size_t index = 0; index < work_.size(); ++index) {
      const Node& node = graph_->nodes[index];
      if (node.branch != branch) continue;
      for (const uint32_t before : node.after) done_[before].wait(1);
      fake_cuda::run(work_[index], jitter);
      done_[index].advance();
    }
  }

  Ref<Graph> graph_;
  uint64_t number_;
  Ref<Record> before_;
  Ref<Record> finished_ = make<Record>();
  std::vector<Work> work_;
  std::unique_ptr<Count[]> done_;
};

}  // namespace

Work launch(Exec& exec) {
  return [replay = make<Replay>(exec)] { replay->run(); };
}

}  // namespace fake_cuda
