// An NVTX tool of our own: loaded by NVTX_INJECTION64_PATH, it writes what it is told to the file that
// PIPERT_TEST_NVTX_LOG names, one JSON object a line, in the order in which it is told. PIPERT_TEST_NVTX_PLAIN makes it
// a tool that does not know the payload extension.
#define NVTX_NO_IMPL
#include <nvtx3/nvToolsExt.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>
#if __has_include(<nvtx3/nvToolsExtPayload.h>)
#include <nvtx3/nvToolsExtPayload.h>
#define WITH_PAYLOAD
#endif

// What NVTX gives out handles of: a domain and a registered string are both a name here.
struct nvtxDomainRegistration_st {
  std::string name;
};
struct nvtxStringRegistration_st {
  std::string name;
};

namespace {

std::mutex mutex;  // guards the log and the schemas

void log(const std::string& line) {
  static std::FILE* const file = [] {
    const char* const path = std::getenv("PIPERT_TEST_NVTX_LOG");
    return path == nullptr ? stderr : std::fopen(path, "w");
  }();
  std::fprintf(file, "{\"thread\": %d, %s}\n", gettid(), line.c_str());
  std::fflush(file);
}

std::string quoted(const std::string& text) { return "\"" + text + "\""; }
std::string entry(const char* key, const std::string& value) { return quoted(key) + ": " + value; }
std::string event(const char* kind, const std::string& name) {
  return entry("event", quoted(kind)) + ", " + entry("name", quoted(name));
}
std::string name_of(nvtxDomainHandle_t domain) { return domain == nullptr ? "" : domain->name; }

#ifdef WITH_PAYLOAD

struct Field {
  std::string name;
  uint64_t type;
  uint64_t offset;
};
struct Schema {
  size_t num_bytes;
  std::vector<Field> fields;
};
std::map<uint64_t, Schema> schemas;

uint64_t register_schema(nvtxDomainHandle_t domain, const nvtxPayloadSchemaAttr_t* attributes) {
  const std::lock_guard lock(mutex);
  Schema schema{attributes->payloadStaticSize, {}};
  for (size_t index = 0; index < attributes->numEntries; ++index) {
    const nvtxPayloadSchemaEntry_t& field = attributes->entries[index];
    schema.fields.push_back({field.name, field.type, field.offset});
  }
  log(event("schema", attributes->name) + ", " + entry("domain", quoted(name_of(domain))));
  const uint64_t id = NVTX_PAYLOAD_SCHEMA_ID_DYNAMIC_START + schemas.size();
  schemas[id] = schema;
  return id;
}

template <typename T>
std::string number_at(const nvtxPayloadData_t& data, uint64_t offset) {
  if (offset + sizeof(T) > data.size) return "\"beyond the payload\"";
  T value;
  std::memcpy(&value, static_cast<const char*>(data.payload) + offset, sizeof value);
  return std::to_string(value);
}

std::string fields_of(const nvtxPayloadData_t& data) {
  const auto schema = schemas.find(data.schemaId);
  if (schema == schemas.end()) return "\"of an unknown schema\"";
  if (schema->second.num_bytes != data.size) return "\"of another size than its schema\"";
  std::string text;
  for (const Field& field : schema->second.fields) {
    std::string value = "\"of an unknown type\"";
    if (field.type == NVTX_PAYLOAD_ENTRY_TYPE_INT32) value = number_at<int32_t>(data, field.offset);
    if (field.type == NVTX_PAYLOAD_ENTRY_TYPE_UINT64) value = number_at<uint64_t>(data, field.offset);
    text += (text.empty() ? "" : ", ") + entry(field.name.c_str(), value);
  }
  return "{" + text + "}";
}

#endif

std::string payload_of(const nvtxEventAttributes_t& attributes) {
  if (attributes.payloadType == NVTX_PAYLOAD_UNKNOWN) return "null";
  if (attributes.payloadType == NVTX_PAYLOAD_TYPE_INT64) return std::to_string(attributes.payload.llValue);
#ifdef WITH_PAYLOAD
  if (attributes.payloadType == NVTX_PAYLOAD_TYPE_EXT && attributes.reserved0 == 1) {
    return fields_of(*reinterpret_cast<const nvtxPayloadData_t*>(attributes.payload.ullValue));
  }
#endif
  return "\"of an unknown type\"";
}

std::string message_of(const nvtxEventAttributes_t& attributes) {
  if (attributes.messageType == NVTX_MESSAGE_TYPE_REGISTERED) return attributes.message.registered->name;
  return attributes.messageType == NVTX_MESSAGE_TYPE_ASCII ? attributes.message.ascii : "";
}

void log_event(const char* kind, nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) {
  const std::lock_guard lock(mutex);
  log(event(kind, message_of(*attributes)) + ", " + entry("domain", quoted(name_of(domain))) + ", " +
      entry("payload", payload_of(*attributes)));
}

nvtxDomainHandle_t create_domain(const char* name) {
  const std::lock_guard lock(mutex);
  log(event("domain", name));
  return new nvtxDomainRegistration_st{name};
}

nvtxStringHandle_t register_string(nvtxDomainHandle_t domain, const char* text) {
  const std::lock_guard lock(mutex);
  log(event("string", text) + ", " + entry("domain", quoted(name_of(domain))));
  return new nvtxStringRegistration_st{text};
}

int push(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) {
  log_event("push", domain, attributes);
  return 0;
}

int pop(nvtxDomainHandle_t domain) {
  const std::lock_guard lock(mutex);
  log(event("pop", "") + ", " + entry("domain", quoted(name_of(domain))));
  return 0;
}

void mark(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* attributes) { log_event("mark", domain, attributes); }

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t get_table) {
  const auto* const callbacks = static_cast<const NvtxExportTableCallbacks*>(get_table(NVTX_ETID_CALLBACKS));
  NvtxFunctionTable table = nullptr;
  unsigned int size = 0;
  if (callbacks == nullptr || callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &table, &size) == 0) return 0;
  if (size <= NVTX_CBID_CORE2_DomainCreateA) return 0;
  const auto install = [table](NvtxCallbackIdCore2 id, auto* function) {
    *table[id] = reinterpret_cast<NvtxFunctionPointer>(function);
  };
  install(NVTX_CBID_CORE2_DomainCreateA, &create_domain);
  install(NVTX_CBID_CORE2_DomainRegisterStringA, &register_string);
  install(NVTX_CBID_CORE2_DomainRangePushEx, &push);
  install(NVTX_CBID_CORE2_DomainRangePop, &pop);
  install(NVTX_CBID_CORE2_DomainMarkEx, &mark);
  return 1;
}

#ifdef WITH_PAYLOAD
EXPORTED int InitializeInjectionNvtxExtension(nvtxExtModuleInfo_t* module) {
  if (std::getenv("PIPERT_TEST_NVTX_PLAIN") != nullptr || module->moduleId != NVTX_EXT_PAYLOAD_MODULEID) return 0;
  module->segments[0].functionSlots[NVTX3EXT_CBID_nvtxPayloadSchemaRegister] =
      reinterpret_cast<intptr_t>(&register_schema);
  return 1;
}
#endif
