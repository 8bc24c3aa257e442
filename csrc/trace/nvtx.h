// The ops of a plan as NVTX ranges and marks, in the domain "pipert": what Nsight Systems and other tools show. An op's
// text is the name; stage, microbatch and bytes are the payload. An op that nobody wants to see costs one branch.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

namespace pipert {

// Whether the NVTX headers were there when this core was built.
bool built_with_nvtx() noexcept;

class NvtxDomain;

// An op as tools see it; the default is seen by nobody.
struct NvtxOp {
  NvtxDomain* domain = nullptr;
  const void* name = nullptr;  // the tool's handle of the op's text
  int32_t stage = -1;          // as in the op's text: of an op of a rank, the rank
  int32_t microbatch = -1;     // -1: the op has none
};

// Made when it is first needed, and there until the process ends: any thread may be within a range.
class NvtxDomain {
 public:
  // The domain if the ops of an executor that is made now are to be seen, else null. PIPERT_NVTX=1 and 0 decide; where
  // it is not set, they are if a tool is attached. Throws ConfigError for another value, and for 1 without NVTX.
  static NvtxDomain* wanted();
  // The domain whether or not anybody looks; null in a core that was built without NVTX.
  static NvtxDomain* get();

  // Hands the text to the tool, once in the life of the process.
  NvtxOp op(const std::string& text, int32_t stage, int32_t microbatch);

  // From any thread.
  void push(const NvtxOp& op, uint64_t num_bytes) const noexcept;
  void pop() const noexcept;
  void mark(const NvtxOp& op, uint64_t num_bytes) const noexcept;

 private:
  NvtxDomain();
  // NVTX gives out domains only where a tool takes them.
  bool has_tool() const noexcept { return handle_ != nullptr; }

  void* handle_ = nullptr;
  uint64_t schema_ = 0;  // of the payload; 0: the tool knows plain numbers only, and gets the bytes
  std::mutex mutex_;
  std::unordered_map<std::string, const void*> names_;
};

// The op runs on this thread until the end of the scope.
class NvtxRange {
 public:
  NvtxRange(const NvtxOp& op, uint64_t num_bytes) noexcept : domain_(op.domain) {
    if (domain_ != nullptr) [[unlikely]]
      domain_->push(op, num_bytes);
  }
  ~NvtxRange() {
    if (domain_ != nullptr) [[unlikely]]
      domain_->pop();
  }
  NvtxRange(const NvtxRange&) = delete;
  NvtxRange& operator=(const NvtxRange&) = delete;

 private:
  const NvtxDomain* domain_;
};

// The op happened now.
inline void nvtx_mark(const NvtxOp& op, uint64_t num_bytes) noexcept {
  if (op.domain != nullptr) [[unlikely]]
    op.domain->mark(op, num_bytes);
}

}  // namespace pipert
