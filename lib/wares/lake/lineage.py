"""Column lineage, read from Spark's analysed plan: for each output column, the table columns that it was made of.

*Direct*: a value flows, or a condition chooses the value (CASE, IF, coalesce, aggregate FILTER). *Indirect*: it decides
which rows or groups there are (WHERE, JOIN, GROUP BY, ORDER BY, window, DISTINCT). The names of the kinds are those of
OpenLineage's column lineage facet.

The trace fails closed: a leaf counts only if it is a relation that the store handed out, right under the alias that it gave
it; a plan node that is not known here is refused, and an expression takes from all its parts.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TypeVar

from py4j.java_gateway import JavaObject
from pyspark.sql import DataFrame

from wares.errors import LineageError
from wares.lake import declassify
from wares.lake.labels import PUBLIC, Label
from wares.lake.plans import Node, all_of, analysed, id_of, kind_of, tree

Path = frozenset[str]
"""The kinds of step on one way."""
Trail = tuple[str, ...]
"""The steps of one way in order, with the names that the value had between them."""
Paths = dict[Path, Trail]
"""The ways by which one source column reaches an output column, each with its shortest trail."""


@dataclass(frozen=True)
class Ref:
    """A column of a table."""

    table: str
    column: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


Flow = dict[Ref, Paths]
Origin = tuple[Ref, int]
"""A source column, and the number of the leaf that it was read at: the same table may be read twice."""
_Flow = dict[Origin, Paths]
Source = TypeVar("Source", Ref, Origin)

AGGREGATION, TRANSFORMATION, CONDITIONAL = "AGGREGATION", "TRANSFORMATION", "CONDITIONAL"
FILTER, JOIN, GROUP_BY, SORT, WINDOW = "FILTER", "JOIN", "GROUP_BY", "SORT", "WINDOW"
AS_IT_WAS: Path = frozenset({GROUP_BY})
"""The steps that leave a value as it was, in a row with what it stood beside."""


@dataclass(frozen=True)
class Lineage:
    """What a frame is made of.

    Args:
        direct: For each output column, the columns whose values flow into it, and by which ways.
        indirect: The columns that decide which rows there are, and how.
    """

    direct: dict[str, Flow]
    indirect: Flow

    def after(self, step: str, columns: Iterable[str]) -> Lineage:
        """The same lineage after one more step, which the store took with some columns."""
        return replace(self, direct=self.direct | {column: _through(self.direct[column], step) for column in columns})

    def decided_by(self, refs: Iterable[Ref], step: str) -> Lineage:
        """The same lineage where some more columns decide which rows there are."""
        more = {ref: {**self.indirect.get(ref, {}), frozenset({step}): (step,)} for ref in refs}
        return replace(self, indirect=self.indirect | more)


@dataclass
class _Groups:
    """What an aggregate tells of its groups: attributes that count people, and keys that stood beside a person."""

    people: dict[int, Origin]
    keys: dict[int, int]


@dataclass
class _Traced:
    """A plan node: its output attributes in order, each with its flow, and what decided its rows."""

    output: list[int]
    flows: dict[int, _Flow]
    indirect: _Flow = field(default_factory=dict)
    groups: _Groups | None = None


class Leaves:
    """The relations that a store hands to builds: only they are believed to be what their alias says."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(8)
        self._handed: dict[str, list[tuple[list[int], JavaObject]]] = {}
        self._labels: dict[str, dict[str, Label]] = {}

    def hand_out(self, frame: DataFrame, table: str, version: int | str) -> DataFrame:
        """A table's relation under an alias that only this run can have given."""
        alias = relation_alias(table, version, self.token)
        handed = frame.alias(alias)
        root = analysed(handed)
        if is_leaf(root):  # any other part is refused when it is traced
            ids = list(leaf(root, self.token)[1].values())
            self._handed.setdefault(alias, []).append((ids, _leaf_with(handed, ids)))
        tags = {part.name: part.metadata.get("label") for part in frame.schema}
        self._labels[table] = {name: Label.parse(tag) for name, tag in tags.items() if tag}
        return handed

    def label(self, ref: Ref) -> Label:
        """The label that a column has in the lake, in the version last handed out; PUBLIC if it has none."""
        return self._labels.get(ref.table, {}).get(ref.column, PUBLIC)

    def check(self, alias: str, ids: list[int], frame: DataFrame) -> None:
        """See that a leaf of `frame` is the relation that was handed out under its alias.

        A relation that is read twice gets new ids the second time; then it is compared as a whole.

        Raises:
            LineageError: It is another one.
        """
        handed = self._handed.get(alias, [])
        if any(ids == known for known, _ in handed):
            return
        found = _leaf_with(frame, ids) if handed else None
        if found is None or not any(found.sameResult(relation) for _, relation in handed):
            raise LineageError(
                "The plan reads something under the alias of another table.",
                found=f"a relation under the alias '{alias}'",
                do="use build's parameters as they are, and name each table that it reads as one",
            )


def relation_alias(table: str, version: int | str, token: str) -> str:
    """The alias under which the store hands a relation to `build`."""
    return f"{table}@{version}#{token}"


def is_leaf(node: Node) -> bool:
    """Whether a plan node is an alias right above a relation."""
    return kind_of(node) == "SubqueryAlias" and kind_of(_below(node)) in RELATIONS


def _below(alias: Node) -> Node:
    """What an alias names. A relation of a catalogue has an alias already, which alone is qualified."""
    child = alias["nodes"][0]
    named = kind_of(child) == "SubqueryAlias" and child["identifier"]["qualifier"]
    return child["nodes"][0] if named else child


def leaf(alias: Node, token: str) -> tuple[str, dict[str, int]]:
    """The table that a leaf reads, and its columns with their attributes' ids, in order.

    Raises:
        LineageError: The alias does not hold the store's token.
    """
    name = alias["identifier"]["name"]
    table, _, found = name.partition("#")
    if found != token:
        raise LineageError(
            "The plan reads something that the store did not hand out.",
            found=f"a relation under the alias '{name}'",
            do="name the table as a parameter of build instead of reading it there",
        )
    attributes = [tree(attribute) for attribute in _below(alias)["output"]]
    return table.rpartition("@")[0], {attribute["name"]: id_of(attribute) for attribute in attributes}


def trace(frame: DataFrame, leaves: Leaves) -> Lineage:
    """The lineage of `frame`, whose leaves the store has handed out.

    Raises:
        LineageError: A part of the plan has an origin that cannot be told.
    """
    traced = _Tracer(frame, leaves).visit(analysed(frame))
    direct = {name: _by_ref(traced.flows[made]) for name, made in zip(frame.columns, traced.output, strict=True)}
    return Lineage({name: _without(flow, name) for name, flow in direct.items()}, _by_ref(traced.indirect))


def _leaf_with(frame: DataFrame, ids: list[int]) -> JavaObject | None:
    """The relation in a frame's plan whose first attribute has the first of `ids`."""
    plan = frame._jdf.queryExecution().analyzed()
    inner = plan.subqueriesAll()
    for part in [plan, *(inner.apply(place) for place in range(inner.size()))]:
        found = part.collectLeaves()
        for place in range(found.size()):
            relation = found.apply(place)
            if not relation.output().isEmpty() and relation.output().head().exprId().id() == ids[0]:
                return relation
    return None


def _merge(flows: Iterable[dict[Source, Paths]]) -> dict[Source, Paths]:
    merged: dict[Source, Paths] = {}
    for flow in flows:
        for source, paths in flow.items():
            _add(merged.setdefault(source, {}), paths)
    return merged


def _add(known: Paths, paths: Paths) -> None:
    for path, trail in paths.items():
        if path not in known or len(trail) < len(known[path]):
            known[path] = trail


def _by_ref(flow: _Flow) -> Flow:
    return _merge({ref: paths} for (ref, _), paths in flow.items())


def _through(flow: dict[Source, Paths], step: str) -> dict[Source, Paths]:
    """The same flow after one more step."""
    after: dict[Source, Paths] = {}
    for source, paths in flow.items():
        for path, trail in paths.items():
            _add(after.setdefault(source, {}), {path | {step}: trail if trail[-1:] == (step,) else (*trail, step)})
    return after


def _named(flow: _Flow, name: str) -> _Flow:
    """The same flow, whose values have a name now."""
    return {
        (ref, leaf): {path: trail if (trail or (ref.column,))[-1] == name else (*trail, name) for path, trail in paths.items()}
        for (ref, leaf), paths in flow.items()
    }


def _without(flow: Flow, name: str) -> Flow:
    """The same flow without the last name, where that is the output column's own."""
    return {
        ref: {path: trail[:-1] if trail[-1:] == (name,) else trail for path, trail in paths.items()}
        for ref, paths in flow.items()
    }


PASSING = {
    "SubqueryAlias", "View", "GlobalLimit", "LocalLimit", "Offset", "Tail", "Sample", "Repartition", "RepartitionByExpression",
    "RebalancePartitions", "ResolvedHint", "UnresolvedHint", "WithCTE", "CTERelationDef",
}  # fmt: skip
RELATIONS = {"LogicalRelation", "DataSourceV2Relation", "StreamingRelation", "HiveTableRelation"}
PYTHON = {
    "MapInArrow",
    "MapInPandas",
    "PythonMapInArrow",
    "FlatMapGroupsInArrow",
    "FlatMapGroupsInPandas",
    "FlatMapCoGroupsInArrow",
    "FlatMapCoGroupsInPandas",
}
# What hangs on more than the rows: clocks, drawn numbers (a drawn seed looks like a written one in the plan, and even with
# the same seed the values follow the partitions), the order and the files of the rows, and Java code by its name.
CLOCKS = {
    "CurrentTimestamp", "CurrentDate", "Now", "LocalTimestamp", "CurrentTime", "CurrentUser", "Uuid", "Rand", "Randn", "Shuffle",
    "RandStr", "Uniform", "MonotonicallyIncreasingID", "SparkPartitionID", "InputFileName", "InputFileBlockStart",
    "InputFileBlockLength", "CallMethodViaReflection",
}  # fmt: skip
# Expressions that choose among values: what they look at decides the value.
CHOOSING = {"CaseWhen", "If", "Coalesce", "NullIf", "Nvl", "Nvl2", "NaNvl", "Greatest", "Least"}
# Window functions whose value is a place in the order, and so is made of what orders.
PLACES = {"RowNumber", "NTile", "CumeDist"}


class _Tracer:
    def __init__(self, frame: DataFrame, leaves: Leaves) -> None:
        self.frame, self.leaves = frame, leaves
        self.numbers = count()
        self.outer: list[dict[int, _Flow]] = []
        self.tables: dict[int, _Traced] = {}  # common table expressions by id

    def visit(self, node: Node) -> _Traced:
        kind = kind_of(node)
        if is_leaf(node):
            return self.leaf(node)
        if kind == "WithCTE":
            return self.common_tables(node)
        if kind == "CTERelationRef":
            return self.common_table(node)
        handler = getattr(self, f"on_{kind}", None)
        if kind not in PASSING and kind not in PYTHON and handler is None:
            raise _unknown(kind)
        children = [self.visit(child) for child in node["nodes"]]
        if handler is not None:
            return handler(node, *children)
        return children[0] if kind in PASSING else self.python(node, children)

    # Leaves

    def leaf(self, alias: Node) -> _Traced:
        table, columns = leaf(alias, self.leaves.token)
        self.leaves.check(alias["identifier"]["name"], list(columns.values()), self.frame)
        number = next(self.numbers)
        flows = {made: {(Ref(table, name), number): {frozenset(): ()}} for name, made in columns.items()}
        return _Traced(list(columns.values()), flows)

    def on_OneRowRelation(self, node: Node) -> _Traced:
        return _Traced([], {})

    def on_Range(self, node: Node) -> _Traced:
        attributes = [id_of(tree(attribute)) for attribute in node["output"]]
        return _Traced(attributes, {attribute: {} for attribute in attributes})

    def common_tables(self, node: Node) -> _Traced:
        for index in node["cteDefs"]:
            definition = node["nodes"][index]
            self.tables[definition["id"]] = self.visit(definition)
        return self.visit(node["nodes"][node["plan"]])

    def common_table(self, node: Node) -> _Traced:
        """Each reference reads the leaves anew: a row of one has nothing to do with the same leaf's row of another."""
        table = self.tables[node["cteId"]]
        numbers: dict[int, int] = {}

        def again(flow: _Flow) -> _Flow:
            return {(ref, numbers.setdefault(old, next(self.numbers))): paths for (ref, old), paths in flow.items()}

        output = [id_of(tree(attribute)) for attribute in node["output"]]
        flows = {new: again(table.flows[old]) for new, old in zip(output, table.output, strict=True)}
        return _Traced(output, flows, again(table.indirect))

    # Nodes

    def on_Project(self, node: Node, child: _Traced) -> _Traced:
        return self.named(node["projectList"], child)

    def on_Filter(self, node: Node, child: _Traced) -> _Traced:
        """Of groups that are kept only if they have enough people, the keys that stood beside the people are lowered."""
        decided = self.decided(child, [node["condition"]], FILTER)
        lifted = {}
        for condition in _conjuncts(tree(node["condition"])):
            k, counted = declassify.threshold(condition) or (0, None)
            if child.groups and counted and kind_of(counted) == "AttributeReference" and id_of(counted) in child.groups.people:
                person, leaf = child.groups.people[id_of(counted)]
                step = declassify.at_least_step(k, person)
                lifted |= {key: _through(child.flows[key], step) for key, beside in child.groups.keys.items() if beside == leaf}
        return replace(decided, flows=child.flows | lifted, groups=child.groups)

    def on_Sort(self, node: Node, child: _Traced) -> _Traced:
        return self.decided(child, node["order"], SORT)

    def on_Distinct(self, node: Node, child: _Traced) -> _Traced:
        return _Traced(child.output, child.flows, _merge([child.indirect, _through(_merge(child.flows.values()), FILTER)]))

    def on_Deduplicate(self, node: Node, child: _Traced) -> _Traced:
        return self.decided(child, node["keys"], FILTER)

    def on_Join(self, node: Node, left: _Traced, right: _Traced) -> _Traced:
        kind = str(node["joinType"])
        one_sided = "LeftSemi" in kind or "LeftAnti" in kind
        both = _Traced(
            left.output + ([] if one_sided else right.output),
            {**left.flows, **right.flows},
            _merge([left.indirect, right.indirect]),
        )
        return self.decided(both, [node["condition"]] if node.get("condition") else [], JOIN)

    def on_Aggregate(self, node: Node, child: _Traced) -> _Traced:
        grouped = self.decided(child, node["groupingExpressions"], GROUP_BY)
        return replace(
            self.named(node["aggregateExpressions"], grouped, plain=GROUP_BY),
            groups=self.groups([tree(nodes) for nodes in node["aggregateExpressions"]], child),
        )

    def groups(self, expressions: list[Node], child: _Traced) -> _Groups:
        found = _Groups({}, {})
        for expression in expressions:
            made = expression["nodes"][0] if kind_of(expression) == "Alias" else expression
            counted = declassify.different_counted(made)
            if counted and (person := self.person(counted, child)):
                found.people[id_of(expression)] = person
            elif not _aggregates(made) and declassify.row_wise(made) and (leaf := self.same_row(made, child)) is not None:
                found.keys[id_of(expression)] = leaf
        return found

    def person(self, expression: Node, child: _Traced) -> Origin | None:
        """The one source column that an attribute is, as it was."""
        if kind_of(expression) != "AttributeReference" or self.same_row(expression, child) is None:
            return None
        origins = list(self.attribute(expression, child))
        return origins[0] if len(origins) == 1 else None

    def same_row(self, expression: Node, child: _Traced) -> int | None:
        """The leaf in whose rows all attributes of an expression stand beside each other as they were; None if none or more."""
        flow = _merge(self.attribute(part, child) for part in all_of(expression) if kind_of(part) == "AttributeReference")
        leaves = {leaf for _, leaf in flow}
        as_it_was = all(path <= AS_IT_WAS for paths in flow.values() for path in paths)
        return leaves.pop() if as_it_was and len(leaves) == 1 else None

    def on_Window(self, node: Node, child: _Traced) -> _Traced:
        added = self.named(node["windowExpressions"], child)
        decided = self.decided(child, [*node["partitionSpec"], *node["orderSpec"]], WINDOW)
        return _Traced(child.output + added.output, {**child.flows, **added.flows}, _merge([added.indirect, decided.indirect]))

    def on_Generate(self, node: Node, child: _Traced) -> _Traced:
        flow = _through(self.flow(tree(node["generator"]), child), TRANSFORMATION)
        made = [id_of(tree(attribute)) for attribute in node["generatorOutput"]]
        return _Traced(
            child.output + made,
            {**child.flows, **{attribute: flow for attribute in made}},
            _merge([child.indirect, _through(flow, FILTER)]),
        )

    def on_Expand(self, node: Node, child: _Traced) -> _Traced:
        """ROLLUP, CUBE, GROUPING SETS and unpivot: each row becomes several."""
        output = [id_of(tree(attribute)) for attribute in node["output"]]
        columns = zip(*node["projections"], strict=True)
        flows = {new: _merge(self.flow(tree(e), child) for e in column) for new, column in zip(output, columns, strict=True)}
        return _Traced(output, flows, child.indirect)

    def on_Union(self, node: Node, *children: _Traced) -> _Traced:
        output = children[0].output
        flows = {new: _merge(child.flows[child.output[place]] for child in children) for place, new in enumerate(output)}
        return _Traced(output, flows, _merge(child.indirect for child in children))

    def on_Intersect(self, node: Node, left: _Traced, right: _Traced) -> _Traced:
        compared = _through(_merge([*left.flows.values(), *right.flows.values()]), FILTER)
        return _Traced(left.output, left.flows, _merge([left.indirect, right.indirect, compared]))

    on_Except = on_Intersect

    def python(self, node: Node, children: list[_Traced]) -> _Traced:
        """A Python function sees all its input, so all of it flows into each output column, and decides the rows."""
        everything = _merge(flow for child in children for flow in child.flows.values())
        output = [id_of(tree(attribute)) for attribute in node["output"]]
        flow = _through(everything, TRANSFORMATION)
        return _Traced(
            output,
            {attribute: flow for attribute in output},
            _merge([*(c.indirect for c in children), _through(everything, FILTER)]),
        )

    # Expressions

    def named(self, expressions: list[list[Node]], child: _Traced, plain: str | None = None) -> _Traced:
        """The output of a node that computes named expressions; `plain` is the step that a column not aggregated takes."""
        output, flows, indirect = [], {}, child.indirect
        for nodes in expressions:
            expression = tree(nodes)
            flow = self.flow(expression, child)
            if plain and not _aggregates(expression):
                flow = _through(flow, plain)
            if kind_of(expression) == "Alias":
                flow = _named(flow, expression["name"])
            output.append(id_of(expression))
            flows[id_of(expression)] = flow
            for spec in (part for part in all_of(expression) if kind_of(part) == "WindowSpecDefinition"):
                indirect = _merge([indirect, _through(_merge(self.flow(part, child) for part in spec["nodes"]), WINDOW)])
        return _Traced(output, flows, indirect)

    def decided(self, child: _Traced, expressions: list[list[Node]], kind: str) -> _Traced:
        flow = _merge(self.flow(tree(nodes), child) for nodes in expressions)
        return _Traced(child.output, child.flows, _merge([child.indirect, _through(flow, kind)]))

    def flow(self, expression: Node, child: _Traced) -> _Flow:
        """What flows into the value of an expression over `child`'s columns, through a declassifier if it is the form of one."""
        flow = self.plain_flow(expression, child)
        if found := declassify.row_step(expression):
            step, attribute = found
            return _through(flow, step) if self.same_row(attribute, child) is not None else flow
        if found := declassify.guarded(expression):
            k, named, value = found
            person = self.person(named, child)
            beside = any(kind_of(part) == "AttributeReference" for part in all_of(value))
            if person and (not beside or self.same_row(value, child) == person[1]):
                return _through(flow, declassify.at_least_step(k, person[0]))
        return flow

    def plain_flow(self, expression: Node, child: _Traced) -> _Flow:
        kind = kind_of(expression)
        if kind == "AttributeReference":
            return self.attribute(expression, child)
        if kind == "OuterReference":
            return self.flow(tree(expression["e"]), child)
        if kind == "VariableReference" or kind in CLOCKS:
            raise LineageError(
                "A build must give the same rows whenever it runs.",
                found=f"the expression {kind}",
                do="take the value from an input table, such as gold.moments",
            )
        if kind == "WindowExpression":  # its partitions and order are indirect, but for a place in the order
            function, spec = (expression["nodes"][expression[part]] for part in ("windowFunction", "windowSpec"))
            order = [spec["nodes"][place] for place in spec["orderSpec"]] if kind_of(function) in PLACES else []
            ordered = _through(_merge(self.flow(part, child) for part in order), TRANSFORMATION)
            return _merge([self.flow(function, child), ordered])
        parts = [self.flow(part, child) for part in expression["nodes"]]
        if isinstance(expression.get("plan"), list):
            parts.append(self.subquery(expression, child))
        flow = _merge(parts)
        if kind == "Alias":
            return flow
        if kind == "AggregateExpression":
            return _through(flow, AGGREGATION)
        return _through(flow, CONDITIONAL if kind in CHOOSING else TRANSFORMATION)

    def attribute(self, expression: Node, child: _Traced) -> _Flow:
        for scope in [child.flows, *reversed(self.outer)]:
            if id_of(expression) in scope:
                return scope[id_of(expression)]
        raise LineageError(
            "The plan names a column that no node below it has.", found=expression["name"], do="report this as a fault of Wares"
        )

    def subquery(self, expression: Node, child: _Traced) -> _Flow:
        self.outer.append(child.flows)
        try:
            inner = self.visit(tree(expression["plan"]))
        finally:
            self.outer.pop()
        return _through(_merge([*(inner.flows[attribute] for attribute in inner.output), inner.indirect]), TRANSFORMATION)


def _aggregates(expression: Node) -> bool:
    return any(kind_of(part) == "AggregateExpression" for part in all_of(expression))


def _conjuncts(condition: Node) -> list[Node]:
    return [part for side in condition["nodes"] for part in _conjuncts(side)] if kind_of(condition) == "And" else [condition]


def _unknown(kind: str) -> LineageError:
    return LineageError(
        "The plan has a part whose origin cannot be told.",
        found=kind,
        do="stay with DataFrame operations on build's parameters: no RDD, checkpoint, createDataFrame or reader of its own",
    )
