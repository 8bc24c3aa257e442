"""Write op_kinds.inc, the C++ side of the op table: ``generate_op_kinds.py pipert/ops.py OUT``."""

import pathlib
import runpy
import sys

table = runpy.run_path(sys.argv[1])
rows = [f'PIPERT_LANE_KIND({lane.name}, "{lane.value}")' for lane in table["LaneKind"]]
rows += [f'PIPERT_OP_KIND({kind.name}, "{kind.text}", {kind.lane.name}, {kind.scope.name})' for kind in table["OpKind"]]
header = "// Generated from pipert/ops.py. Include with PIPERT_LANE_KIND and PIPERT_OP_KIND defined.\n"
pathlib.Path(sys.argv[2]).write_text(header + "\n".join(rows) + "\n")
