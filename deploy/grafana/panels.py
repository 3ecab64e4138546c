"""Queries, panels and dashboards, so that a dashboard is a list of what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import bargauge, common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as model

SOURCE = model.DataSourceRef(type_val="prometheus", uid="${source}")
WIDTH = 24  # of Grafana's grid
Panel = timeseries.Panel | stat.Panel | bargauge.Panel


@dataclass(frozen=True)
class Query:
    """``legend``: a name, or one with the labels in it, as ``{{model}}``. ``exemplars``: whether traces are marked."""

    expr: str
    legend: str
    exemplars: bool = False


@dataclass(frozen=True)
class Row:
    """``columns``: panels side by side; a row's are equally wide."""

    title: str
    panels: tuple[Panel, ...]
    height: int = 8
    columns: int = 3


# Of a deployment. On Kubernetes the label comes from the discovery of pods; elsewhere there is none, and "All" matches.
OURS = 'namespace=~"$namespace"'


def rate(metric: str, where: str, by: str) -> str:
    """Per second, summed over everything but ``by``."""
    return f"sum by ({by}) (rate({metric}{{{where}}}[$__rate_interval]))"


def happened(metric: str, where: str, by: str) -> str:
    """Its rate where there is one: what is counted from 0 on is no line of its own before it happens."""
    return f"{rate(metric, where, by)} > 0"


def quantile(share: float, histogram: str, where: str, by: str = "") -> str:
    """Of a histogram, by what its buckets tell."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, {rate(f'{histogram}_bucket', where, labels)})"


def mean(histogram: str, where: str, by: str) -> str:
    return ratio(rate(f"{histogram}_sum", where, by), rate(f"{histogram}_count", where, by))


def ratio(part: str, whole: str) -> str:
    return f"{part} / {whole}"


def graph(title: str, unit: str, *queries: Query, text: str = "", stacked: bool = False) -> timeseries.Panel:
    """Over time. ``unit``: as Grafana names it."""
    panel = timeseries.Panel().title(title).unit(unit).description(text).min(0).datasource(SOURCE)
    legend = common.VizLegendOptions().display_mode(options.LegendDisplayMode.LIST).placement(_BOTTOM)
    panel.legend(legend.show_legend(True))
    panel.tooltip(common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI).sort(_DESCENDING))
    panel.show_points(options.VisibilityMode.NEVER)
    if stacked:
        panel.stacking(common.StackingConfig().mode(options.StackingMode.NORMAL)).fill_opacity(20)
    return panel.targets([_target(query, number).range() for number, query in enumerate(queries)])


def figure(title: str, unit: str, expr: str, text: str = "") -> stat.Panel:
    """One number: the latest."""
    panel = stat.Panel().title(title).unit(unit).description(text).datasource(SOURCE)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.targets([_target(Query(expr, ""), 0).range()])


def bars(title: str, unit: str, query: Query, text: str = "") -> bargauge.Panel:
    """The latest of each series, side by side."""
    panel = bargauge.Panel().title(title).unit(unit).description(text).min(0).datasource(SOURCE)
    panel.orientation(options.VizOrientation.HORIZONTAL)
    panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel.targets([_target(query, 0).instant()])


def choice(name: str, label: str, series: str) -> dashboard.QueryVariable:
    """A variable ``$name`` of any number of the values that ``series`` have for the label of that name. "All" also
    matches series without that label."""
    query = f"label_values({series}, {name})"
    variable = dashboard.QueryVariable(name).label(label).datasource(SOURCE).query({"query": query, "refId": name})
    variable.refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(model.VariableSort.ALPHABETICAL_ASC)
    return variable.multi(True).include_all(True).all_value(".*").current(_ALL)


def assembled(uid: str, title: str, variable: dashboard.QueryVariable, rows: Sequence[Row]) -> model.Dashboard:
    """``variable``: the dashboard's own, of what is in the chosen namespaces."""
    board = dashboard.Dashboard(title).uid(uid).tags(["opara"]).readonly().refresh("10s").time("now-30m", "now")
    board.tooltip(model.DashboardCursorSync.CROSSHAIR).timezone("browser")
    others = dashboard.DashboardLink("opara-serve").type(model.DashboardLinkType.DASHBOARDS).tags(["opara"])
    board.link(others.keep_time(True))
    source = dashboard.DatasourceVariable("source").label("Data source").type("prometheus")
    board.with_variable(source.hide(model.VariableHide.HIDE_VARIABLE))
    board.with_variable(choice("namespace", "Namespace", "opara_build_info")).with_variable(variable)
    number = 0
    for row in rows:
        if row.title:
            board.with_row(dashboard.Row(row.title).id(number := number + 1))
        for panel in row.panels:
            board.with_panel(panel.span(WIDTH // row.columns).height(row.height).id(number := number + 1))
    return board.build()


def _target(query: Query, number: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id("ABCDEFGH"[number])
    return target.exemplar(True) if query.exemplars else target


_DESCENDING = options.SortOrder.DESCENDING
_BOTTOM = options.LegendPlacement.BOTTOM
_ALL = model.VariableOption(text="All", value="$__all")
