#include <nvtx3/nvToolsExt.h>

#include <cstddef>
#include <cstdint>

#include "trace/nvtx.h"
#if __has_include(<nvtx3/nvToolsExtPayload.h>)
#include <nvtx3/nvToolsExtPayload.h>
#define PIPERT_NVTX_PAYLOAD
#endif

namespace pipert {
namespace {

#ifdef PIPERT_NVTX_PAYLOAD

struct OpPayload {
  int32_t stage;
  int32_t microbatch;
  uint64_t num_bytes;
};

nvtxPayloadSchemaEntry_t field(const char* name, uint64_t type, size_t offset) {
  nvtxPayloadSchemaEntry_t entry{};
  entry.name = name;
  entry.type = type;
  entry.offset = offset;
  return entry;
}

uint64_t register_schema(nvtxDomainHandle_t domain) {
  const nvtxPayloadSchemaEntry_t entries[] = {
      field("stage", NVTX_PAYLOAD_ENTRY_TYPE_INT32, offsetof(OpPayload, stage)),
      field("microbatch", NVTX_PAYLOAD_ENTRY_TYPE_INT32, offsetof(OpPayload, microbatch)),
      field("bytes", NVTX_PAYLOAD_ENTRY_TYPE_UINT64, offsetof(OpPayload, num_bytes)),
  };
  nvtxPayloadSchemaAttr_t schema{};
  schema.fieldMask = NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_NAME | NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_TYPE |
                     NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_ENTRIES | NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_NUM_ENTRIES |
                     NVTX_PAYLOAD_SCHEMA_ATTR_FIELD_STATIC_SIZE;
  schema.name = "pipert op";
  schema.type = NVTX_PAYLOAD_SCHEMA_TYPE_STATIC;
  schema.entries = entries;
  schema.numEntries = std::size(entries);
  schema.payloadStaticSize = sizeof(OpPayload);
  return nvtxPayloadSchemaRegister(domain, &schema);
}

#else

uint64_t register_schema(nvtxDomainHandle_t) { return 0; }

#endif

// What a range or a mark is told. It points into itself.
class Event {
 public:
  Event(const NvtxOp& op, uint64_t num_bytes, [[maybe_unused]] uint64_t schema) noexcept {
    attributes_.version = NVTX_VERSION;
    attributes_.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    attributes_.messageType = NVTX_MESSAGE_TYPE_REGISTERED;
    attributes_.message.registered = static_cast<nvtxStringHandle_t>(const_cast<void*>(op.name));
    attributes_.payloadType = NVTX_PAYLOAD_TYPE_INT64;
    attributes_.payload.llValue = static_cast<int64_t>(num_bytes);
#ifdef PIPERT_NVTX_PAYLOAD
    if (schema == 0) return;
    payload_ = {.stage = op.stage, .microbatch = op.microbatch, .num_bytes = num_bytes};
    data_ = {.schemaId = schema, .size = sizeof payload_, .payload = &payload_};
    attributes_.payloadType = NVTX_PAYLOAD_TYPE_EXT;
    attributes_.reserved0 = 1;  // one piece of payload data
    attributes_.payload.ullValue = reinterpret_cast<uintptr_t>(&data_);
#endif
  }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  const nvtxEventAttributes_t* attributes() const noexcept { return &attributes_; }

 private:
  nvtxEventAttributes_t attributes_{};
#ifdef PIPERT_NVTX_PAYLOAD
  OpPayload payload_;
  nvtxPayloadData_t data_;
#endif
};

nvtxDomainHandle_t as_domain(void* handle) noexcept { return static_cast<nvtxDomainHandle_t>(handle); }

}  // namespace

bool built_with_nvtx() noexcept { return true; }

NvtxDomain::NvtxDomain() {
  const nvtxDomainHandle_t domain = nvtxDomainCreateA("pipert");
  handle_ = domain;
  schema_ = register_schema(domain);
}

NvtxDomain* NvtxDomain::get() {
  static NvtxDomain* const domain = new NvtxDomain;
  return domain;
}

NvtxOp NvtxDomain::op(const std::string& text, int32_t stage, int32_t microbatch) {
  const std::lock_guard lock(mutex_);
  const auto [found, is_new] = names_.try_emplace(text, nullptr);
  if (is_new) found->second = nvtxDomainRegisterStringA(as_domain(handle_), text.c_str());
  return {.domain = this, .name = found->second, .stage = stage, .microbatch = microbatch};
}

void NvtxDomain::push(const NvtxOp& op, uint64_t num_bytes) const noexcept {
  const Event event(op, num_bytes, schema_);
  nvtxDomainRangePushEx(as_domain(handle_), event.attributes());
}

void NvtxDomain::pop() const noexcept { nvtxDomainRangePop(as_domain(handle_)); }

void NvtxDomain::mark(const NvtxOp& op, uint64_t num_bytes) const noexcept {
  const Event event(op, num_bytes, schema_);
  nvtxDomainMarkEx(as_domain(handle_), event.attributes());
}

}  // namespace pipert
