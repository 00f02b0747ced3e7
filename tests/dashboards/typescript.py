"""Writes a TypeScript program that compiles when the dashboards are what Grafana's own types allow.

`typescript.py DIRECTORY`, from the root of the repository; the packages are in its node_modules.
"""

import json
import sys
from pathlib import Path

# JSON has no enums: an enum's member is taken as its value. The types leave panels' options and custom field
# settings open, so each is held against those of its kind.
HEAD = """import type { Dashboard, Panel } from '@grafana/schema';
type Plain<T> = T extends string ? `${T}` : T extends number ? (`${T}` extends `${infer N extends number}` ? N : T)
  : T extends (infer E)[] ? Plain<E>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
"""
KINDS = {
    "bargauge": "BarGauge",
    "stat": "Stat",
    "state-timeline": "StateTimeline",
    "table": "Table",
    "timeseries": "TimeSeries",
}
WITH_CUSTOM = {"state-timeline", "timeseries"}


def program(dashboards):
    lines = [HEAD]
    for kind, name in KINDS.items():
        alias, module = kind.replace("-", ""), f"{name}PanelCfg_types.gen"
        path = f"@grafana/schema/dist/esm/raw/composable/{alias}/panelcfg/x/{module}"
        lines.append(f"import type * as {alias} from '{path}';")
    for i, dashboard in enumerate(dashboards):
        panels = dashboard.pop("panels")
        lines.append(f"export const d{i} = {json.dumps(dashboard, indent=1)} satisfies Plain<Dashboard>;")
        for panel in panels:
            alias, place = panel["type"].replace("-", ""), f"d{i}p{panel['id']}"
            lines.append(f"// {dashboard['title']}: {panel['title']}")
            options, custom = panel.pop("options"), panel["fieldConfig"]["defaults"].pop("custom", None)
            lines.append(f"export const {place} = {json.dumps(panel, indent=1)} satisfies Plain<Panel>;")
            lines.append(f"export const {place}o = {json.dumps(options)} satisfies Plain<{alias}.Options>;")
            if panel["type"] in WITH_CUSTOM:
                lines.append(f"export const {place}c = {json.dumps(custom)} satisfies Plain<{alias}.FieldConfig>;")
            elif custom is not None:
                raise SystemExit(f"{panel['title']}: nothing checks the custom settings of a {panel['type']}")
    return "\n".join(lines) + "\n"


files = sorted(Path("grafana/dashboards").glob("*.json"))
(Path(sys.argv[1]) / "dashboards.ts").write_text(program([json.loads(file.read_text()) for file in files]))
