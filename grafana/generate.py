#!/usr/bin/env python3
"""Writes the dashboards beside it: `python3 grafana/generate.py`, after every change here.

Grafana wants each panel spelled out, with the same colours, variables and data source over and over; here each is said
once. Every query is right for both values of --metrics.status-series: `== 1` keeps, of one series per instance and
status, the one the instance is in.
"""

import json
from pathlib import Path

DASHBOARDS = Path(__file__).parent / "dashboards"

# Each documented status, in the order of an instance's life, with its colour: green runs, red has failed, purple is on
# its way out, grey is off, and blue, yellow and orange pass. The order makes the numbers of the state timeline.
STATUSES = {
    "PENDING": "super-light-blue",
    "DEPLOYING": "light-blue",
    "CREATE_FAILED": "dark-red",
    "RUNNING": "green",
    "REBOOT": "yellow",
    "STOPPING": "light-orange",
    "STOPPED": "#8e8e8e",
    "BOOTING": "super-light-yellow",
    "REBUILDING": "orange",
    "RESIZING": "dark-yellow",
    "IMAGING": "blue",
    "RECYCLE": "purple",
    "RECYCLING": "light-purple",
    "RELEASING": "dark-purple",
}
# Any status that is not documented, and none at all.
OTHER, OTHER_COLOUR = "other", "semi-dark-red"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
JOB = 'job=~"$job"'
CHOSEN = f'{JOB}, instanceId=~"$instanceId"'
WIDTH = 24


def status(more="", chosen=CHOSEN, suffix=""):
    """The series of the chosen instances; `more` narrows them down."""
    return f"zenlayer_instance_status{{{', '.join(filter(None, [chosen, more]))}}}{suffix}"


def named(expr, everyone, at=""):
    """Adds name and zone to series of instances, where --collector.instance-info is on. A join drops what its other side
    lacks, so `everyone` has each instance at 1, without them. Of two names, as two exporters may tell for a moment, one is
    taken: two would be an error."""
    info = f"zenlayer_instance_info{{{CHOSEN}}}{at}"
    return f"""({expr}) * on (instanceId) group_left (instanceName, zoneId) (
  topk by (instanceId) (1, max by (instanceId, instanceName, zoneId) ({info}))
  or on (instanceId) {everyone}
)"""


def told(expr):
    """The name before the id, in a label for legends; the id alone, after a space, where there is no name."""
    return f'label_join({expr}, "told", " ", "instanceName", "instanceId")'


# ---- Queries that need a word of explanation.

# An exporter that Prometheus cannot scrape has no zenlayer_up: it counts as 0, for as long as it is a target. Other
# targets may share its job, so it must have been seen in the shown range.
UP = (
    f"min(zenlayer_up{{{JOB}}}\n"
    f"  or (up{{{JOB}}} == 0 and on (job, instance) last_over_time(zenlayer_up{{{JOB}}}[$__range])))"
)

# Before the first success the timestamp is 0, and there is no age.
AGE = f"time() - (zenlayer_exporter_last_successful_poll_timestamp_seconds{{{JOB}}} > 0)"

# Each pair of documented statuses has a counter from the start: those that did not change are left out.
TRANSITIONS = f"""label_join(
  sum by (from, to) (
    increase(zenlayer_instance_status_transitions_total{{{JOB}, to=~"$status"}}[$__rate_interval])
  ) > 0, "change", " → ", "from", "to"
)
or on () label_replace(vector(0), "change", "none", "", "")"""

# The last time the instance was seen in any other status; 0 where that was before the shown range.
_NOT_RUNNING = f"""1000 * max by (instanceId, status) (
  0 * ({status('status!="RUNNING", status=~"$status"')} == 1) + on (instanceId) group_left ()
    max by (instanceId) (
      max_over_time(timestamp({status()} == 1)[$__range:$__interval])
      unless on (instanceId, status) ({status()} == 1)
    )
  or 0 * ({status('status!="RUNNING", status=~"$status"')} == 1)
)"""
NOT_RUNNING = named(_NOT_RUNNING, f"max by (instanceId) ({status()} == 1)")

# A return: RUNNING, and not so 30 seconds before, though the exporter knew then. 0 for the steady. Looking at this one
# status alone keeps it fast for ten thousand instances.
_RUNNING = 'status="RUNNING"'
_RETURNS = f"""
  sum by (instanceId) (count_over_time((
    max by (instanceId) (
      {status(_RUNNING)} == 1
      and on (job, instance) (zenlayer_up{{{JOB}}} offset 30s == 1)
    )
    unless on (instanceId) ({status(_RUNNING, suffix=" offset 30s")} == 1)
  )[1h:30s]))
  or 0 * max by (instanceId) ({status()} == 1)
"""
# Of equals `topk` takes any, and others when asked again: so that is done once.
FLAPPERS = told(named(f"topk(10,{_RETURNS})", f"({_RETURNS}) ^ 0"))

# Of the chosen instances those that were in the most statuses, so that a large fleet can be drawn; they are picked once
# for the whole range.
_LIVELIEST = f"""topk(50, sum by (instanceId) (
  max_over_time({status('status=~"$status"')}[$__range] @ end())
) > 0)"""


def numbered():
    """One number per status. RUNNING is the last, and picked from at once: it is nearly all of a fleet."""
    numbers = [(name, number) for number, name in enumerate(STATUSES, 1) if name != "RUNNING"]
    yield f"""0 * ({status(f'status!~"{"|".join(STATUSES)}"')} == 1)"""
    yield from (f"""{number} * ({status(f'status="{name}"')} == 1)""" for name, number in numbers)
    number = 1 + list(STATUSES).index("RUNNING")
    yield f"""{number} * ({status(_RUNNING)} == 1 and on (instanceId) {_LIVELIEST})"""


_TIMELINE = "max by (instanceId) (\n     " + "\n  or ".join(numbered()) + f"\n)\nand on (instanceId) {_LIVELIEST}"
# The names are those at the end, so that a rename does not break a line in two.
_SEEN = f"(max by (instanceId) (max_over_time({status()}[$__range] @ end()))) ^ 0"
TIMELINE = told(named(_TIMELINE, _SEEN, at=" @ end()"))

# In milliseconds, as a table takes a time.
_ENDS = f"max by (instanceId) (zenlayer_instance_expiry_timestamp_seconds{{{CHOSEN}}})"
ENDS = named(f"1000 * bottomk(200, {_ENDS})", f"({_ENDS}) ^ 0")


def of_exporters(metric, function="{}"):
    """A process metric of the exporters alone: other targets may share their job, and have it too."""
    return function.format(f"{metric}{{{JOB}}}") + f" and on (job, instance) zenlayer_up{{{JOB}}}"


def rate_by(label, counter, matchers=JOB, per_minute=False):
    return f"{'60 * ' if per_minute else ''}sum by ({label}) (rate({counter}{{{matchers}}}[$__rate_interval]))"


def quantile(q, histogram):
    return f"histogram_quantile({q}, sum by (le) (rate({histogram}_bucket{{{JOB}}}[$__rate_interval])))"


def mean(histogram):
    sums = [f"sum(rate({histogram}_{part}{{{JOB}}}[$__rate_interval]))" for part in ("sum", "count")]
    return " / ".join(sums)


def lost(counter):
    return f"sum(increase({counter}[$__range]))"


# ---- Panels.


def target(expr, legend="", instant=False, table=False):
    return {
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": expr,
        "format": "table" if table else "time_series",
        "instant": instant,
        "legendFormat": legend or "__auto",
        "range": not instant,
    }


def panel(kind, title, description, targets, unit, width, height, options, **more):
    defaults = {"unit": unit, "color": {"mode": "palette-classic"}, "thresholds": steps("text")}
    defaults |= more.pop("defaults", {})
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "gridPos": {"x": 0, "y": 0, "w": width, "h": height},
        "targets": [each | {"refId": chr(ord("A") + i)} for i, each in enumerate(targets)],
        "fieldConfig": {"defaults": defaults, "overrides": more.pop("overrides", [])},
        "options": options,
        **more,
    }


def steps(base, *above):
    return {
        "mode": "absolute",
        "steps": [{"color": base, "value": None}, *({"color": colour, "value": value} for value, colour in above)],
    }


def stat(title, description, expr, unit="short", thresholds=None, no_value="–", decimals=None, mappings=()):
    """The value now, never the last one that was: what is gone shows as gone."""
    defaults = {
        "color": {"mode": "thresholds"},
        "thresholds": thresholds or steps("text"),
        "noValue": no_value,
        "mappings": list(mappings),
    }
    if decimals is not None:
        defaults["decimals"] = decimals
    return panel(
        "stat", title, description, [target(expr, instant=True)], unit, 4, 4,
        {
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "percentChangeColorMode": "standard",
            "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
            "showPercentChange": False,
            "textMode": "value",
            "wideLayout": True,
        },
        defaults=defaults,
    )


def timeseries(title, description, targets, unit, width=8, height=8, stack=False, bars=False, colours=None, **limits):
    custom = {
        "drawStyle": "bars" if bars else "line",
        "fillOpacity": 60 if stack else 10,
        "lineWidth": 0 if stack else 1,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stack else "none"},
    }
    return panel(
        "timeseries", title, description, targets, unit, width, height,
        {
            "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc", "hideZeros": stack},
        },
        defaults={"custom": custom, "min": 0, **limits},
        overrides=[
            {
                "matcher": {"id": "byName", "options": name},
                "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
            }
            for name, colour in (colours or {}).items()
        ],
    )


def columns(**names):
    """Names the columns, in this order, and drops the rest that every instant query has."""
    return [
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True, "Value": "Value" not in names},
                "includeByName": {},
                "indexByName": {name: i for i, name in enumerate(names)},
                "renameByName": names,
            },
        }
    ]


def table(title, description, expr, width, height, sort_by, transformations, unit="none", **more):
    return panel(
        "table", title, description, [target(expr, instant=True, table=True)], unit, width, height,
        {
            "cellHeight": "sm",
            "frameIndex": 0,
            "showHeader": True,
            "sortBy": [{"displayName": sort_by, "desc": False}],
        },
        transformations=transformations,
        **more,
    )


def instance_link(value):
    return {
        "title": "Only this instance",
        "url": "/d/zenlayer-fleet?${datasource:queryparam}&${job:queryparam}&${status:queryparam}"
        f"&var-instanceId={value}&${{__url_time_range}}",
        "targetBlank": False,
    }


YES_NO = {
    "type": "value",
    "options": {"0": {"text": "no", "color": "red", "index": 1}, "1": {"text": "yes", "color": "green", "index": 0}},
}
# What --poll.max-staleness withdraws after five minutes unless told otherwise.
AGE_STEPS = steps("green", (120, "orange"), (300, "red"))


def lay_out(rows):
    """Ids from 1, and each row of panels below the last."""
    panels, y = [], 0
    for row in rows:
        x = 0
        for each in row:
            each["gridPos"] |= {"x": x, "y": y}
            x += each["gridPos"]["w"]
            panels.append({"id": len(panels) + 1} | each)
        assert x == WIDTH, f"a row is {x} wide: {[each['title'] for each in row]}"
        y += max(each["gridPos"]["h"] for each in row)
    return panels


# ---- Dashboards.


def variable(name, label, query, hide=0):
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "regex": "",
        "skipUrlSync": False,
        "hide": hide,
    }


def variables(hide_choice):
    """The same in both dashboards, so that a link there and back keeps what was chosen."""
    return [
        {
            "type": "datasource",
            "name": "datasource",
            "label": "Data source",
            "query": "prometheus",
            "refresh": 1,
            "multi": False,
            "includeAll": False,
            "options": [],
            "regex": "",
            "skipUrlSync": False,
            "hide": 0,
        },
        variable("job", "Job", "label_values(zenlayer_up, job)"),
        variable("status", "Status", f"label_values(zenlayer_instances{{{JOB}}}, status)", hide_choice),
        variable("instanceId", "Instance", f"label_values(zenlayer_instance_status{{{JOB}}}, instanceId)", hide_choice),
    ]


def dashboard(uid, title, description, other, rows, hide_choice=0):
    other_uid, other_title = other
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["zenlayer"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [
            {
                "type": "link",
                "title": other_title,
                "tooltip": f"To the dashboard {other_title}, with the same choice and time",
                "url": f"/d/{other_uid}",
                "icon": "dashboard",
                "tags": [],
                "asDropdown": False,
                "targetBlank": False,
                "includeVars": True,
                "keepTime": True,
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": variables(hide_choice)},
        "panels": lay_out(rows),
    }


FLEET = ("zenlayer-fleet", "Zenlayer / Fleet")
EXPORTER = ("zenlayer-exporter", "Zenlayer / Exporter")


def fleet():
    count = f"sum(zenlayer_instances{{{JOB}}})"
    running = f'sum(zenlayer_instances{{{JOB}, status="RUNNING"}})'
    share = f"{running} / ({count} > 0)"
    by_status = f'sum by (status) (zenlayer_instances{{{JOB}, status=~"$status"%s}})'
    since_override = [
        {
            "matcher": {"id": "byName", "options": "In this status since"},
            "properties": [
                {"id": "unit", "value": "dateTimeFromNow"},
                {
                    "id": "mappings",
                    "value": [{"type": "value", "options": {"0": {"text": "before the shown range", "index": 0}}}],
                },
            ],
        },
        {
            "matcher": {"id": "byName", "options": "Instance"},
            "properties": [{"id": "links", "value": [instance_link("${__value.raw}")]}],
        },
        {
            "matcher": {"id": "byName", "options": "Status"},
            "properties": [
                {
                    "id": "mappings",
                    "value": [
                        {
                            "type": "value",
                            "options": {
                                name: {"color": colour, "index": i}
                                for i, (name, colour) in enumerate(STATUSES.items())
                            },
                        }
                    ],
                },
                {"id": "custom.cellOptions", "value": {"type": "color-text"}},
            ],
        },
    ]
    rows = [
        [
            stat("Instances", "Instances that the last successful poll found, in any status.", count),
            stat("RUNNING", "Instances in the status RUNNING.", running),
            stat(
                "Not RUNNING",
                "Instances in any other status, also those that only pass through it.",
                f'sum(zenlayer_instances{{{JOB}, status!="RUNNING"}})',
            ),
            stat(
                "Share RUNNING",
                "RUNNING instances of all instances. Empty when there are none.",
                share,
                "percentunit",
                decimals=1,
            ),
            stat(
                "Age of data",
                "Time since the last successful poll, of the exporter where it is longest. Instance series go after "
                "--poll.max-staleness, 5 minutes unless set.",
                f"max({AGE})",
                "s",
                AGE_STEPS,
                decimals=0,
            ),
            stat(
                "Polls succeed",
                "Whether the last poll of every exporter succeeded. An exporter that Prometheus cannot "
                "scrape counts as no.",
                UP,
                "none",
                mappings=[YES_NO],
                no_value="no exporter",
            ),
        ],
        [
            timeseries(
                "Instances by status",
                "How many instances are in each of the chosen statuses, stacked. A gap is a time without data.",
                [target(by_status % "", "{{status}}")],
                "short",
                12,
                9,
                stack=True,
                colours=STATUSES,
            ),
            timeseries(
                "Not RUNNING by status",
                "The same without RUNNING, which would hide the others in a large fleet.",
                [target(by_status % ', status!="RUNNING"', "{{status}}")],
                "short",
                12,
                9,
                stack=True,
                colours=STATUSES,
            ),
        ],
        [
            timeseries(
                "Share RUNNING over time",
                "RUNNING instances of all instances. A gap is a time without data or without instances.",
                [target(share, "RUNNING")],
                "percentunit",
                12,
                9,
                colours={"RUNNING": STATUSES["RUNNING"]},
                max=1,
            ),
            timeseries(
                "Status changes",
                "Changes into the chosen statuses, as the exporter saw them between two polls, counted over the rate "
                "interval before each point. Pairs that did not change are left out.",
                [target(TRANSITIONS, "{{change}}")],
                "short",
                12,
                9,
                stack=True,
                bars=True,
            ),
        ],
        [
            table(
                "Instances not RUNNING",
                "Each chosen instance in a chosen status other than RUNNING, longest first. The time is when it was "
                "last seen in another status within the shown range, to a sixtieth of it; a wider range looks "
                "further back. A click on an instance narrows this dashboard down to it.",
                NOT_RUNNING,
                14,
                11,
                "In this status since",
                columns(
                    instanceId="Instance", instanceName="Name", zoneId="Zone", status="Status", Value="In this status since"
                ),
                defaults={"noValue": "No such instance is known now", "color": {"mode": "thresholds"}},
                overrides=since_override,
                # One step is a sixtieth of the range: the query looks at every chosen instance at each.
                maxDataPoints=60,
            ),
            panel(
                "bargauge",
                "Most returns to RUNNING",
                "The ten of the chosen instances that most often came to be RUNNING after they were not, in the last "
                "hour of the shown range, evaluated every 30 seconds. A return is one complete flap.",
                [target(FLAPPERS, "{{told}}", instant=True)],
                "short",
                10,
                11,
                {
                    "displayMode": "basic",
                    "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
                    "maxVizHeight": 300,
                    "minVizHeight": 16,
                    "minVizWidth": 8,
                    "namePlacement": "left",
                    "orientation": "horizontal",
                    "reduceOptions": {"calcs": ["last"], "fields": "", "values": False},
                    "showUnfilled": True,
                    "sizing": "auto",
                    "valueMode": "color",
                },
                defaults={
                    "color": {"mode": "thresholds"},
                    "thresholds": steps("blue", (3, "orange")),
                    "decimals": 0,
                    "min": 0,
                    "links": [instance_link("${__field.labels.instanceId}")],
                },
            ),
        ],
        [
            panel(
                "state-timeline",
                "Time in status",
                "One line per instance, coloured by its status; blank where it was not known. The query turns "
                "each status into a number, and the panel maps it back to the name; an undocumented status is called "
                f"{OTHER}. At most 50 lines: of the chosen instances that were in a chosen status within the range, "
                "those that were in the most statuses. What is shorter than a step of the query may be missing: narrow "
                "the range to see it.",
                [target(TIMELINE, "{{told}}")],
                "none",
                WIDTH,
                16,
                {
                    "alignValue": "left",
                    "legend": {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": False},
                    "mergeValues": True,
                    "perPage": 25,
                    "rowHeight": 0.85,
                    "showValue": "auto",
                    "tooltip": {"mode": "single", "sort": "none"},
                },
                defaults={
                    "color": {"mode": "thresholds"},
                    "custom": {"fillOpacity": 80, "lineWidth": 0},
                    "links": [instance_link("${__field.labels.instanceId}")],
                    "mappings": [
                        {
                            "type": "value",
                            "options": {
                                str(number): {"text": name, "color": colour, "index": number}
                                for number, (name, colour) in enumerate([(OTHER, OTHER_COLOUR), *STATUSES.items()])
                            },
                        }
                    ],
                },
            ),
        ],
        [
            table(
                "Subscriptions",
                "When the subscriptions of the chosen instances end, the first to end first, at most 200. Empty where the "
                "exporter does not collect it (--collector.instance-info), and of instances that have none.",
                ENDS,
                WIDTH,
                9,
                "Ends",
                columns(instanceId="Instance", instanceName="Name", zoneId="Zone", Value="Ends"),
                defaults={"noValue": "No subscription is known", "color": {"mode": "thresholds"}},
                overrides=[
                    {
                        "matcher": {"id": "byName", "options": "Ends"},
                        "properties": [{"id": "unit", "value": "dateTimeFromNow"}],
                    },
                    {
                        "matcher": {"id": "byName", "options": "Instance"},
                        "properties": [{"id": "links", "value": [instance_link("${__value.raw}")]}],
                    },
                ],
            ),
        ],
    ]
    return dashboard(
        *FLEET, "Status of Zenlayer Cloud instances, now and over time.", EXPORTER, rows
    )


def exporter():
    poll, api = "zenlayer_exporter_poll_duration_seconds", "zenlayer_exporter_api_request_duration_seconds"
    failures = steps("green", (1, "orange"))

    def durations(histogram):
        quantiles = [target(quantile(q, histogram), f"{q:.0%}") for q in (0.5, 0.9, 0.99)]
        return [*quantiles, target(mean(histogram), "mean")]

    rows = [
        [
            stat(
                "Polls succeed",
                "Whether the last poll of every exporter succeeded. An exporter that Prometheus cannot "
                "scrape counts as no.",
                UP,
                "none",
                mappings=[YES_NO],
                no_value="no exporter",
            ),
            stat(
                "Age of data",
                "Time since the last successful poll, of the exporter where it is longest.",
                f"max({AGE})",
                "s",
                AGE_STEPS,
                decimals=0,
            ),
            stat(
                "Polls failed",
                "Polls within the shown range that did not succeed.",
                lost(f'zenlayer_exporter_polls_total{{{JOB}, outcome!="success"}}'),
                thresholds=failures,
                decimals=0,
            ),
            stat(
                "Retries",
                "Requests to the API within the shown range that were retried.",
                lost(f"zenlayer_exporter_api_retries_total{{{JOB}}}"),
                thresholds=failures,
                decimals=0,
            ),
            stat(
                "Invalid entries",
                "Entries of the API's pages within the shown range that had no usable instance ID.",
                lost(f"zenlayer_exporter_invalid_entries_total{{{JOB}}}"),
                thresholds=failures,
                decimals=0,
            ),
            stat(
                "Up since",
                "Time since the exporter started, of the one that started last.",
                f"min(time() - ({of_exporters('process_start_time_seconds')}))",
                "s",
                decimals=0,
            ),
        ],
        [
            timeseries(
                "Polls by outcome",
                "Polls per minute: success, or the kind of error. docs/troubleshooting.md has the cause and the fix of each.",
                [target(rate_by("outcome", "zenlayer_exporter_polls_total", per_minute=True), "{{outcome}}")],
                "opm",
                stack=True,
                colours={"success": "green"},
            ),
            timeseries(
                "Poll duration",
                "How long whole polls took, all pages and retries included. Quantiles are estimated from the "
                "histogram's buckets, so short ones look longer than they are; the mean is exact.",
                durations(poll),
                "s",
            ),
            timeseries(
                "Age of data over time",
                "Time since each exporter's last successful poll: normally a sawtooth of the height of the poll interval.",
                [target(AGE, "{{instance}}")],
                "s",
            ),
        ],
        [
            timeseries(
                "API requests by code",
                "Requests to the API by HTTP status, or by what kept the answer from coming.",
                [target(rate_by("code", "zenlayer_exporter_api_requests_total"), "{{code}}")],
                "reqps",
                stack=True,
                colours={"200": "green"},
            ),
            timeseries(
                "API latency",
                "How long single requests to the API took, bodies included. Quantiles are estimated from the "
                "histogram's buckets; the mean is exact.",
                durations(api),
                "s",
            ),
            timeseries(
                "Retries by reason",
                "Requests to the API per minute that were retried. Normally 0.",
                [target(rate_by("reason", "zenlayer_exporter_api_retries_total", per_minute=True), "{{reason}}")],
                "opm",
            ),
        ],
        [
            timeseries(
                "Corrections",
                "Instances per minute that paging missed and a look-up by ID or a second walk found: the fleet changes "
                "while it is read. And entries of pages without a usable instance ID.",
                [
                    target(f"60 * sum(rate(zenlayer_exporter_{name}_total{{{JOB}}}[$__rate_interval]))", legend)
                    for name, legend in [("poll_corrections", "corrections"), ("invalid_entries", "invalid entries")]
                ],
                "cpm",
            ),
            timeseries(
                "Collectors",
                "1 where the last round of the collector succeeded on every exporter, else 0.",
                [
                    target(
                        f"min by (collector) (zenlayer_exporter_collector_success{{{JOB}}})", "{{collector}}"
                    )
                ],
                "none",
                max=1,
            ),
            timeseries(
                "HTTP requests served",
                "Requests to the exporter, scrapes among them, by path and HTTP status.",
                [target(rate_by("path, code", "zenlayer_exporter_http_requests_total"), "{{path}} {{code}}")],
                "reqps",
                stack=True,
            ),
        ],
        [
            timeseries(
                "Memory",
                "Resident memory of each exporter.",
                [target(of_exporters("process_resident_memory_bytes"), "{{instance}}")],
                "bytes",
            ),
            timeseries(
                "CPU",
                "CPU time of each exporter, as a share of one core.",
                [
                    target(
                        of_exporters("process_cpu_seconds_total", "rate({}[$__rate_interval])"), "{{instance}}"
                    )
                ],
                "percentunit",
            ),
            timeseries(
                "Open files",
                "File descriptors that each exporter has open: connections, mostly.",
                [target(of_exporters("process_open_fds"), "{{instance}}")],
                "short",
            ),
        ],
        [
            table(
                "Builds",
                "Version and revision of each exporter.",
                f"max by (job, instance, version, revision, rustversion) (zenlayer_exporter_build_info{{{JOB}}})",
                WIDTH,
                6,
                "Instance",
                columns(instance="Instance", job="Job", version="Version", revision="Revision", rustversion="Rust"),
            )
        ],
    ]
    return dashboard(
        *EXPORTER, "Health and resource use of zenlayer-exporter.", FLEET, rows, hide_choice=2
    )


def text(dashboard):
    return json.dumps(dashboard, indent=2, ensure_ascii=False) + "\n"


FILES = {DASHBOARDS / "fleet.json": fleet(), DASHBOARDS / "exporter.json": exporter()}

if __name__ == "__main__":
    for file, content in FILES.items():
        file.write_text(text(content), encoding="utf-8")
