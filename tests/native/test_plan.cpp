// Op text, the JSON reader, the parsed plan and the verdict on it. (tests/unit holds the verifier to every kind of
// fault.)
#include <string>

#include "core/error.h"
#include "expect.h"
#include "plan/json_reader.h"
#include "plan/plan.h"

namespace {

using namespace pipert;

// Two ranks with a stage each, one microbatch, forward only.
const std::string small_plan = R"({
  "name": "small", "recv_depth": 2, "paths": [[0, 1]], "path_of": [0],
  "lanes": {"rank": [0, 0, 1, 1], "kind": ["compute", "send", "compute", "recv"], "peer": [-1, 1, -1, 0]},
  "slots": {"rank": [1], "stage": [1], "payload": ["input"]},
  "ops": {"text": ["0F0", "0SEND_F0", "1RECV_F0", "1F0"], "lane": [0, 1, 3, 2], "slot": [-1, -1, 0, -1],
          "dep_offsets": [0, 0, 1, 1, 2], "deps": [0, 2]}})";

std::string replaced(std::string text, const std::string& old_part, const std::string& new_part) {
  const size_t position = text.find(old_part);
  EXPECT(position != std::string::npos);
  return text.replace(position, old_part.size(), new_part);
}

// What the loader says of a text; empty if it is a valid plan.
std::string fault_of(const std::string& json) {
  try {
    verify(parse_plan(json));
  } catch (const PlanError& error) {
    return error.what();
  }
  return "";
}

void op_text_round_trips() {
  for (const OpKindRow& row : op_kind_table) {
    if (row.kind == OpKind::OVERLAP_F_B) continue;
    const int32_t stage = is_meeting(row.kind) ? -1 : 12;
    const int32_t microbatch = has_microbatch(row.kind) ? 2147483647 : -1;
    const std::string text = to_text(row.kind, stage, microbatch);
    const std::optional<Op> op = parse_op(text);
    EXPECT(op && op->kind == row.kind && op->stage == stage && op->microbatch == microbatch && to_text(*op) == text);
    EXPECT(op->compute_parts().size() == (row.lane == LaneKind::COMPUTE && row.scope == Scope::MICROBATCH ? 1 : 0));
  }
  const std::optional<Op> pair = parse_op("(2F3;5B1)OVERLAP_F_B");
  EXPECT(pair && to_text(*pair) == "(2F3;5B1)OVERLAP_F_B" && pair->stage == 2 && pair->microbatch == 3);
  EXPECT(pair->compute_parts().size() == 2 && pair->compute_parts()[1] == (ComputePart{OpKind::BACKWARD, 5, 1}));
}

void other_text_is_no_op() {
  for (const char* text : {"",
                           "F",
                           "2F",
                           "F0",
                           "02F0",
                           "2F00",
                           "2F0junk",
                           " 2F0",
                           "2F0 ",
                           "2f0",
                           "-1F0",
                           "2F-1",
                           "+2F0",
                           "2X0",
                           "2SEND0",
                           "2UNSHARD0",
                           "2UNSHARD ",
                           "UNSHARD",
                           "2OVERLAP_F_B0",
                           "2147483648F0",
                           "(2F0)OVERLAP_F_B",
                           "(2F0;2B0)",
                           "(2F0;2B0)OVERLAP_F_Bx",
                           "(;)OVERLAP_F_B",
                           "((2F0;2B0)OVERLAP_F_B;2F1)OVERLAP_F_B",
                           "(2F0;2SEND_F0)OVERLAP_F_B",
                           "(2F0;2B0;2W0)OVERLAP_F_B",
                           "\xD9\xA1"})
    EXPECT(!parse_op(text));
}

void a_plan_is_read() {
  const Plan plan = parse_plan(small_plan);
  EXPECT(plan.name == "small" && plan.num_ranks == 2 && plan.num_stages == 2 && plan.num_ops() == 4);
  EXPECT(plan.lane_ops[3] == std::vector<int32_t>{2} && plan.lane_position[3] == 0);
  EXPECT(plan.deps_of(0).empty() && plan.deps_of(3).size() == 1 && plan.deps_of(3)[0] == 2);
  EXPECT(plan.partner_of(1) == 2 && plan.partner_of(2) == 1 && plan.partner_of(3) == -1);
  EXPECT(plan.rank_of(2) == 1 && plan.text(2) == "1RECV_F0" && plan.slots[0].payload == Payload::INPUT);
  EXPECT(plan.fingerprint == parse_plan(small_plan).fingerprint);
  EXPECT(plan.fingerprint != parse_plan(replaced(small_plan, "small", "other")).fingerprint);
  verify(plan);
}

void faults_are_named() {
  EXPECT(fault_of(replaced(small_plan, "[0, 2]", "[0, 9]")) == "plan: ops.deps[1]: expected 0..3, found 9");
  EXPECT(fault_of(replaced(small_plan, "[0, 0, 1, 1, 2]", "[0, 0, 1, 1, 1]")) ==
         "plan: the last of ops.dep_offsets: expected 2..2, found 1");
  EXPECT(fault_of(replaced(small_plan, "\"slot\": [-1, -1, 0, -1]", "\"slot\": [-1, -1, -1, -1]")) ==
         "rank 1: 1RECV_F0 (op 2): expected a slot of its rank, its stage and its payload, found none");
  EXPECT(fault_of(replaced(small_plan, "\"0SEND_F0\", \"1RECV_F0\", \"1F0\"", "\"1F0\", \"1RECV_F0\", \"0SEND_F0\""))
             .find("expected rank 1's compute lane, found rank 0's send lane to rank 1") != std::string::npos);
}

void strings_are_utf8() {
  const auto name = [](const std::string& json) { return parse_plan(replaced(small_plan, "\"small\"", json)).name; };
  EXPECT(name(R"("\u00e9\ud83e\udee7\"\\\/\b\f\n\r\t")") == "\xC3\xA9\xF0\x9F\xAB\xA7\"\\/\b\f\n\r\t");
  EXPECT(name("\"\xC3\xA9\xF0\x9F\xAB\xA7\"") == "\xC3\xA9\xF0\x9F\xAB\xA7");
  for (const char* bad :
       {"\"\xFF\"", "\"\xC3\"", "\"\xC0\x80\"", "\"\xED\xA0\x80\"", "\"\xF4\x90\x80\x80\"", "\"\xE2\x82\"", "\"\x01\"",
        R"("\ud83e")", R"("\udee7")", R"("\ud83ex")", R"("\x41")", R"("\u12g4")", "\"\\n\xFF\""})
    EXPECT(!fault_of(replaced(small_plan, "\"small\"", bad)).empty());
}

void depth_and_numbers_are_bounded() {
  EXPECT(fault_of(std::string(1 << 20, '[')) ==
         "plan: (byte 0): expected an object, found [[[[[[[[[[[[[[[[[[[[[[[[...");
  EXPECT(!fault_of(replaced(small_plan, "[0, 2]", std::string(1 << 20, '['))).empty());
  for (const char* number : {"1.0", "1e3", "01", "+1", "-", "0x1", "99999999999", "NaN", "true", "null", "\"1\"", ""})
    EXPECT(!fault_of(replaced(small_plan, "\"recv_depth\": 2", std::string("\"recv_depth\": ") + number)).empty());
}

}  // namespace

int main() {
  op_text_round_trips();
  other_text_is_no_op();
  a_plan_is_read();
  faults_are_named();
  strings_are_utf8();
  depth_and_numbers_are_bounded();
}
