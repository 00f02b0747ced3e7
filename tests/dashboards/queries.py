"""Every query of every panel and variable against a Prometheus that scraped exporters in demo mode.

`queries.py PROMETHEUS JOB… SECONDS`: Prometheus's URL, the jobs, and for how long they were scraped. An independent count,
from raw samples, stands beside the queries that are not plain.
"""

import json
import math
import re
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import urlopen

prometheus, *jobs, seconds = sys.argv[1:]
end = time.time() - 2
RANGE, STEP, RATE_INTERVAL = int(seconds), 5, 10
dashboards = {file.name: json.loads(file.read_text()) for file in sorted(Path("grafana/dashboards").glob("*.json"))}
passed = 0
# Columns that are there only where names are told, and the panel that then alone has data.
OPTIONAL, OF_INFO = {"instanceName", "zoneId"}, "Subscriptions"


def check(condition, where, what):
    global passed
    if not condition:
        raise SystemExit(f"{where}: {what}")
    passed += 1


def ask(path, **parameters):
    with urlopen(f"{prometheus}/api/v1/{path}?{urlencode(parameters, doseq=True)}", timeout=30) as answer:
        return json.load(answer)["data"]


def filled_in(expr, job, status=".*", instance=".*"):
    values = {
        "$job": job,
        "$status": status,
        "$instanceId": instance,
        "$__rate_interval": f"{RATE_INTERVAL}s",
        "$__range": f"{RANGE}s",
        "$__interval": f"{STEP}s",
    }
    # The longest first: one name begins with another.
    for name in sorted(values, key=len, reverse=True):
        expr = expr.replace(name, values[name])
    check("$" not in expr, expr, "a variable is left")
    return expr


def run(target, job, **chosen):
    """Series with their samples, as the panel would be given them."""
    expr = filled_in(target["expr"], job, **chosen)
    if target["instant"]:
        result = ask("query", query=expr, time=end)["result"]
        return [(series["metric"], [series["value"]]) for series in result]
    result = ask("query_range", query=expr, start=end - RANGE, end=end, step=STEP)["result"]
    return [(series["metric"], series["values"]) for series in result]


def targets(name, title):
    (panel,) = [panel for panel in dashboards[name]["panels"] if panel["title"] == title]
    return panel, panel["targets"][0]


def every_panel_has_data(job):
    for name, dashboard in dashboards.items():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                where = f"{name}, {panel['title']}, {target['refId']}, job {job}"
                series = run(target, job)
                finite = [value for _, samples in series for _, value in samples if math.isfinite(float(value))]
                if panel["title"] == OF_INFO and not has_names(job):
                    check(not series, where, "has data that nobody told")
                    continue
                check(finite, where, "returns no finite sample")
                for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                    check(all(label in labels for labels, _ in series), where, f"no label {label} for its legend")
                for row in panel.get("transformations", []):
                    wanted = row["options"]["renameByName"].keys() - {"Value"} - OPTIONAL
                    check(all(wanted <= labels.keys() for labels, _ in series), where, f"not all of {wanted}")


def has_names(job):
    return bool(ask("query", query=f'zenlayer_instance_info{{job=~"{job}"}}', time=end)["result"])


def names_are_told_right(job):
    """Beside each instance its own name and zone, or none where none is told; and none is lost for that."""
    infos = ask("query", query=f'zenlayer_instance_info{{job="{job}"}}', time=end)["result"]
    known = {info["metric"]["instanceId"]: (info["metric"]["instanceName"], info["metric"]["zoneId"]) for info in infos}
    for title in ("Instances not RUNNING", "Most returns to RUNNING", "Time in status", OF_INFO):
        panel, each = targets("fleet.json", title)
        series = run(each, job)
        check(series or title == OF_INFO, title, "shows nothing")
        for labels, _ in series:
            shown = labels.get("instanceName", ""), labels.get("zoneId", "")
            expected = known.get(labels["instanceId"], ("", ""))
            check(shown == expected, title, f"{labels}, though {expected} is told")
            if "{{told}}" in each["legendFormat"]:
                legend = f"{shown[0]} {labels['instanceId']}"
                check(labels["told"] == legend, title, f"{labels} instead of {legend}")
        if known and title != OF_INFO:
            check(any(labels.get("instanceName") for labels, _ in series), title, "has no names")
    ends = ask("query", query=f'zenlayer_instance_expiry_timestamp_seconds{{job="{job}"}}', time=end)["result"]
    expected = {series["metric"]["instanceId"]: 1000 * float(series["value"][1]) for series in ends}
    shown = {labels["instanceId"]: float(value) for labels, ((_, value),) in run(targets("fleet.json", OF_INFO)[1], job)}
    check(len(shown) == min(200, len(expected)) and shown.items() <= expected.items(), OF_INFO, "differs from the samples")


def every_variable_has_values(job):
    for name, dashboard in dashboards.items():
        for variable in dashboard["templating"]["list"]:
            if variable["type"] == "datasource":
                continue
            query = variable["query"]["query"]
            found = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
            check(found, name, f"not understood: {query}")
            selector, label = found.groups()
            values = ask(
                f"label/{label}/values", **{"match[]": filled_in(selector, job), "start": end - RANGE, "end": end}
            )
            check(values, f"{name}, {variable['name']}", "has no values")


def history(job):
    """What each instance was in at each scrape."""
    result = ask("query", query=f'zenlayer_instance_status{{job="{job}"}}[{RANGE + 60}s]', time=end)["result"]
    seen = defaultdict(dict)
    for series in result:
        for at, value in series["values"]:
            if value == "1":
                seen[series["metric"]["instanceId"]][at] = series["metric"]["status"]
    return seen


def statuses_at(job, moment):
    result = ask("query", query=f'zenlayer_instance_status{{job="{job}"}} == 1', time=moment)["result"]
    return {series["metric"]["instanceId"]: series["metric"]["status"] for series in result}


def statuses_are_told_right(job, seen):
    now = statuses_at(job, end)
    check(len(now) == 500 and len(set(now.values())) > 3, job, f"not much of a fleet: {Counter(now.values())}")

    panel, timeline = targets("fleet.json", "Time in status")
    (mapping,) = panel["fieldConfig"]["defaults"]["mappings"]
    expr = filled_in(timeline["expr"], job).replace("topk(50,", "topk(100000,")
    drawn = {
        series["metric"]["instanceId"]: mapping["options"][series["value"][1]]["text"]
        for series in ask("query", query=expr, time=end)["result"]
    }
    wrong = sum(drawn.get(each) != now[each] for each in now)
    check(drawn.keys() == now.keys() and not wrong, "Time in status", f"{wrong} differ from the samples")
    series = run(timeline, job)
    check(len(series) == 50, "Time in status", f"{len(series)} lines of 500 instances")
    lively = [labels["instanceId"] for labels, _ in series if len(set(seen[labels["instanceId"]].values())) > 1]
    check(len(lively) == 50, "Time in status", f"draws {50 - len(lively)} steady instances before others")
    steady = next(each for each, samples in seen.items() if set(samples.values()) == {"RUNNING"})
    check(len(run(timeline, job, instance=steady)) == 1, "Time in status", "does not draw a chosen steady instance")
    check(len(run(timeline, job, instance=steady, status="(STOPPED|BOOTING)")) == 0, "Time in status",
          "draws what was in none of the chosen statuses")

    panel, listed = targets("fleet.json", "Instances not RUNNING")
    rows = run(listed, job)
    there = {labels["instanceId"]: labels["status"] for labels, _ in rows}
    check(there == {each: status for each, status in now.items() if status != "RUNNING"}, "Instances not RUNNING",
          "differs from the samples")
    told = 0
    for labels, ((_, milliseconds),) in rows:
        samples = seen[labels["instanceId"]]
        others = [at for at, status in samples.items() if status != labels["status"] and at > end - RANGE]
        since = float(milliseconds) / 1000
        if since:
            check(others and -STEP - 1 <= since - max(others) <= 3, "Instances not RUNNING",
                  f"{labels} since {since}, by the samples {others[-1:]}")
            told += 1
        else:
            check(not others or max(others) <= end - RANGE + STEP + 1, "Instances not RUNNING",
                  f"{labels} has no time, by the samples {others[-1:]}")
    check(told > 10, "Instances not RUNNING", f"only {told} times are told")


def changes_are_counted_right(job):
    _, most = targets("fleet.json", "Most returns to RUNNING")
    # Without the limit, and at the query's own points in time: whole multiples of 30 seconds.
    expr = filled_in(most["expr"], job).replace("topk(10,", "topk(100000,")
    counted = {
        series["metric"]["instanceId"]: int(series["value"][1])
        for series in ask("query", query=expr, time=end)["result"]
    }

    looks = [statuses_at(job, moment) for moment in range(int(end // 30) * 30, int(end - RANGE - 60), -30)]
    expected = Counter()
    for later, earlier in zip(looks, looks[1:]):
        if earlier:
            expected.update(each for each in later if later[each] == "RUNNING" != earlier.get(each))
    check(sum(expected.values()) > 0, "Most returns to RUNNING", "nothing came back")
    wrong = {each: (n, expected[each]) for each, n in counted.items() if n != expected[each]}
    check(not wrong, "Most returns to RUNNING", f"counted and expected: {wrong}")
    shown = [int(samples[0][1]) for _, samples in run(most, job)]
    check(len(shown) == 10 and max(shown) == max(expected.values()), "Most returns to RUNNING", f"shows {shown}")

    # Over the whole time of scraping, none is missed, not even the first of its kind.
    _, transitions = targets("fleet.json", "Status changes")
    window = f"{RANGE}s"
    expr = filled_in(transitions["expr"].replace("$__rate_interval", window), job)
    counted = ask("query", query=expr, time=end)["result"]
    found = {series["metric"]["change"]: float(series["value"][1]) for series in counted}
    counter = f'zenlayer_instance_status_transitions_total{{job="{job}"}}'
    raw = ask("query", query=f"{counter}[{window}]", time=end)["result"]
    first = 0
    for series in raw:
        pair = " → ".join((series["metric"]["from"], series["metric"]["to"]))
        values = [float(value) for _, value in series["values"]]
        exact = values[-1] - values[0]
        first += values[0] == 0 < exact
        check(abs(found.get(pair, 0) - exact) <= 0.5 + 0.1 * exact, "Status changes",
              f"{pair}: {found.get(pair, 0)}, by the samples {exact}")
    check(first > 0, "Status changes", "no pair changed for the first time within the window, so nothing of that is shown")


check([has_names(job) for job in jobs] == [True, False], jobs, "the first alone has names")
for job in jobs:
    every_panel_has_data(job)
    every_variable_has_values(job)
    names_are_told_right(job)
    seen = history(job)
    statuses_are_told_right(job, seen)
    changes_are_counted_right(job)
# Both at once: no query may stumble over one instance in two jobs.
every_panel_has_data(f"({'|'.join(jobs)})")
panels = sum(len(dashboard["panels"]) for dashboard in dashboards.values())
print(f"{passed} checks of the queries of {panels} panels, after {RANGE} seconds of scraping")
