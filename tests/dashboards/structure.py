"""The dashboards and their provisioning, read as files: `structure.py`, from the root of the repository."""

import json
import re
import runpy
from pathlib import Path

import yaml

GRAFANA = Path("grafana")
MOUNTED = "/var/lib/grafana/dashboards"
# Variables of Grafana's own.
BUILT_IN = re.compile(r"__\w+")
VARIABLE = re.compile(r"\$(?:\{(\w+)[^}]*\}|(\w+))")

dashboards = {file.name: json.loads(file.read_text()) for file in sorted(GRAFANA.glob("dashboards/*.json"))}
passed = 0


def check(condition, where, what):
    global passed
    if not condition:
        raise SystemExit(f"{where}: {what}")
    passed += 1


def walk(value):
    """Every object in it."""
    if isinstance(value, dict):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(each)


def strings(value):
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(each)


def cells(panel):
    grid = panel["gridPos"]
    return {
        (x, y)
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    }


def is_what_the_generator_writes():
    generator = runpy.run_path(str(GRAFANA / "generate.py"))
    written = {file.name: generator["text"](content) for file, content in generator["FILES"].items()}
    there = {file.name: file.read_text() for file in GRAFANA.glob("dashboards/*.json")}
    check(there.keys() == written.keys(), "grafana/dashboards", f"{sorted(there)} are there")
    for name in there:
        check(there[name] == written[name], name, "is not what is written by grafana/generate.py: run it")


def structure(name, dashboard):
    uids = {each["uid"] for each in dashboards.values()}
    check(dashboard["uid"] == f"zenlayer-{Path(name).stem}", name, "its uid is not that of its file name")
    check(dashboard["schemaVersion"] >= 39, name, "an old schema")
    head = dashboard["tags"], dashboard["editable"], dashboard["refresh"]
    check(head == (["zenlayer"], True, "30s"), name, f"tags, editable, refresh are {head}")

    panels = dashboard["panels"]
    ids = [panel["id"] for panel in panels]
    check(len(ids) == len(set(ids)), name, f"panel ids are not unique: {ids}")
    titles = [panel["title"] for panel in panels]
    check(len(titles) == len(set(titles)), name, f"panel titles are not unique: {titles}")
    taken = {}
    for panel in panels:
        where = f"{name}, {panel['title']}"
        below = {taken[cell] for cell in cells(panel) if cell in taken}
        check(not below, where, f"lies over {below}")
        check(all(0 <= x < 24 for x, _ in cells(panel)), where, "is off the grid")
        taken |= dict.fromkeys(cells(panel), panel["title"])
        check(len(panel["description"]) > 20, where, "no description")
        check(panel["fieldConfig"]["defaults"]["unit"], where, "no unit")
        check(panel["targets"], where, "no query")
        refs = [target["refId"] for target in panel["targets"]]
        check(len(refs) == len(set(refs)), where, f"refIds are not unique: {refs}")
        for target in panel["targets"]:
            check(target["instant"] != target["range"], where, "is neither instant nor range, or both")
            for window in re.findall(r"rate\([^\[]*\[([^\]]*)\]", target["expr"]):
                check(window == "$__rate_interval", where, f"a rate over {window}")
            for window in re.findall(r"increase\([^\[]*\[([^\]]*)\]", target["expr"]):
                check(window in ("$__rate_interval", "$__range"), where, f"an increase over {window}")
            # `offset` stands between the selector and the comparison; inside a window the window does.
            for rest in re.findall(r"zenlayer_instance_status\{[^}]*\}(?: offset \w+)?(.{0,10})", target["expr"]):
                check(
                    rest.startswith((" == 1", "[$__range]")), where, f"counts what the instance is not in: …{rest}"
                )

    needy = [each for each in walk(dashboard) if {"datasource", "gridPos", "expr"} & each.keys()]
    sources = [each.get("datasource") for each in needy]
    wrong = [source for source in sources if source != {"type": "prometheus", "uid": "${datasource}"}]
    check(sources and not wrong, name, f"a fixed data source: {wrong}")

    variables = {each["name"]: each for each in dashboard["templating"]["list"]}
    check(list(variables) == ["datasource", "job", "status", "instanceId"], name, f"variables: {list(variables)}")
    used = {braced or bare for text in strings(dashboard) for braced, bare in VARIABLE.findall(text)}
    for variable in used:
        check(variable in variables or BUILT_IN.fullmatch(variable), name, f"no variable is named {variable}")
    for variable in variables.values():
        # A hidden one only goes through, to the other dashboard and back.
        check(variable["name"] in used or variable["hide"] == 2, name, f"{variable['name']} is not used")

    targets = {uid for text in strings(dashboard) for uid in re.findall(r"^/d/([\w-]+)", text)}
    check(targets <= uids, name, f"a link to none of {uids}: {targets}")
    others = {link["url"] for link in dashboard["links"] if link["keepTime"] and link["includeVars"]}
    check(others == {f"/d/{uid}" for uid in uids - {dashboard["uid"]}}, name, f"links to {others}")


def statuses_are_all_there():
    """Those of the exporter's model, each with a colour and a number, and nothing else."""
    model = Path("src/model.rs").read_text()
    documented = set(re.findall(r'^ +"([A-Z_]+)",$', model, re.MULTILINE))
    named = set(runpy.run_path(str(GRAFANA / "generate.py"))["STATUSES"])
    check(len(documented) > 10 and documented == named, "grafana/generate.py", f"statuses differ: {documented ^ named}")


def provisioning():
    def read(path):
        return yaml.safe_load((GRAFANA / "provisioning" / path).read_text())

    providers = read("dashboards/zenlayer.yaml")
    check(providers["apiVersion"] == 1, "provisioning/dashboards", "apiVersion")
    (provider,) = providers["providers"]
    check(provider["type"] == "file" and provider["options"]["path"] == MOUNTED, "provisioning/dashboards", provider)
    sources = read("datasources/prometheus.yaml")
    check(sources["apiVersion"] == 1, "provisioning/datasources", "apiVersion")
    (source,) = sources["datasources"]
    check(source["type"] == "prometheus" and source["isDefault"], "provisioning/datasources", source)


is_what_the_generator_writes()
statuses_are_all_there()
for name, dashboard in dashboards.items():
    structure(name, dashboard)
provisioning()
print(f"{passed} checks of structure")
