"""Which inputs of a build can be cut to some refresh keys, proven from the plan.

A refresh by key runs `build` on inputs of which only the rows with some keys are left. That is right if for *every* set S of
keys `build` over the inputs cut to S is `build` over the whole inputs, restricted to S. Then what `build` gives for keys that
no change touched cannot have changed either: it is made of untouched rows alone.

The proof goes up the plan. The rows of each node are of one of two sorts:

- *Whole*: nothing below is cut, so the rows are the same for each S.
- *Keyed*: cutting the inputs leaves exactly the node's rows whose keys are in S. The rows show their keys: for each key it is
  known which attributes hold it. A node whose rows no longer show a key is refused, for nothing could be said above it.

A leaf of an input that is cut is keyed by the columns that it is cut by; other leaves are whole. From there on:

- What looks at one row at a time (projection, filter, explode, sort) keeps keyed rows keyed.
- Rows that are put together must share their keys: aggregates, windows and duplicates go by all keys, and where two keyed
  sides are joined, the condition makes all keys equal. So no row meets one of other keys.
- Keyed rows may look up whole ones. Whole rows may not stand by themselves beside keyed ones, as in a union or on the
  preserved side of an outer join: those that belong to keys outside S would stay.
- A union, intersection or difference of keyed rows is keyed if the keys stand in the same places.
- What picks rows by their place (limit, sample), is not the same in each run, or is done in Python, is refused. Only of
  `mapInArrow` and `mapInPandas` a table file may say that they keep to the keys: then rows keep those that they carry through.

Keys are followed through new names, through the equalities of inner joins and filters, and through `coalesce` above outer
joins: of a side that may be missing, the attributes are null or the key. Which columns an input might be cut by is guessed
first, from what is linked to the output's keys by a name or an equality. If the proof gets stuck with all these inputs cut, one
that the node in its way reads is cut by another column or left whole, and so on, the fewest such changes first. An input is
cut wherever the build reads it, or nowhere, because it is one table.

Null is a value here: whoever cuts the inputs compares keys null-safely, and counts rows with a null in a key among the
changes. Where `build` leaves a choice open (which of two equal rows is first), it is as open over the cut inputs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product

from pyspark.sql import DataFrame

from wares.errors import CutError
from wares.lake.lineage import PASSING, is_leaf, leaf
from wares.lake.plans import Node, all_of, analysed, expressions_of, id_of, kind_of, tree, unsteady

PICKING = {"GlobalLimit", "LocalLimit", "Offset", "Tail", "Sample"}
KEEPING = {*PASSING, "Sort", "Distinct"}  # rows show their keys, so equal rows have equal keys
ROW_GENERATORS = {"Explode", "PosExplode", "Inline", "Stack", "JsonTuple"}
EQUALITIES = {"EqualTo", "EqualNullSafe"}
ONE_SIDED = {"LeftSemi", "LeftAnti"}
KEEPS_LEFT = {"LeftOuter", "FullOuter", *ONE_SIDED}
KEEPS_RIGHT = {"RightOuter", "FullOuter"}
JOINS = {"Inner", "Cross", *KEEPS_LEFT, *KEEPS_RIGHT}
MAPPING = {"MapInArrow", "MapInPandas"}

CARRY = "carry the keys unchanged to the output"
LOOK_UP = "look these rows up from rows that are cut, or give them the keys"
GO_BY_KEYS = "go by all refresh keys there, or move what mixes them into a table of its own"
OTHERWISE = "use other DataFrame operations"
KEEPS_TO_KEYS = "declare python_by_key=True if it makes the rows of each key of that key's rows alone"

Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class _Key:
    """Where rows hold one of the keys.

    Args:
        covers: Sets of attributes that are null or the key, and not all null unless the key is.
        partial: All attributes that are null or the key.
    """

    covers: frozenset[frozenset[int]] = frozenset()
    partial: frozenset[int] = frozenset()

    def told_by(self, attributes: Collection[int]) -> bool:
        """Whether rows that are equal in these attributes have the same key."""
        return any(cover.issubset(attributes) for cover in self.covers)

    def first_of(self, attributes: Collection[int]) -> bool:
        """Whether the first of these attributes that is not null is the key."""
        return self.partial.issuperset(attributes) and self.told_by(attributes)

    def equal_by(self, pairs: Pairs) -> set[int]:
        """The attributes that are the key where the two of each pair are equal."""
        same = {attribute for cover in self.covers if len(cover) == 1 for attribute in cover}
        while more := {attribute for pair in pairs if same & set(pair) for attribute in pair} - same:
            same |= more
        return same

    def also(self, attributes: Iterable[int]) -> _Key:
        """The same where each of these attributes is the key too."""
        more = frozenset(attributes)
        return _Key(self.covers | {frozenset({attribute}) for attribute in more}, self.partial | more)

    def renamed(self, names: Mapping[int, Collection[int]]) -> _Key:
        """The same where each attribute has other ids, or none."""
        covers = (product(*(names.get(attribute, ()) for attribute in cover)) for cover in self.covers)
        return _Key(
            frozenset(frozenset(new) for renamed in covers for new in renamed),
            frozenset(new for attribute in self.partial for new in names.get(attribute, ())),
        )


@dataclass(frozen=True)
class _Rows:
    """The rows of a plan node: their attributes in order, the tables that they come from, and their keys; None if whole."""

    output: list[int]
    tables: frozenset[str] = frozenset()
    keys: tuple[_Key, ...] | None = None


class _Stuck(CutError):
    """The proof cannot go on as long as all of `tables` are cut."""

    def __init__(self, keys: tuple[str, ...], found: str, do: str, tables: frozenset[str] = frozenset()) -> None:
        wrong = f"A refresh by {', '.join(keys)} cannot be proven right."
        super().__init__(wrong, found=found, do=f"{do}, or declare refresh=FULL")
        self.tables = tables


def key_columns(frame: DataFrame, keys: tuple[str, ...], token: str, python_by_key: bool = False) -> dict[str, tuple[str, ...]]:
    """The inputs that can be cut to some refresh keys, and by which columns.

    Args:
        frame: What `build` returned, over leaves that the store has aliased with `token`.
        keys: Columns of `frame`.
        token: The store's.
        python_by_key: Whether Python functions that map rows are said to keep to the keys.

    Returns:
        For each such table the columns that hold the keys, in the order of `keys`. A table that is not named stays whole.

    Raises:
        CutError: No input can be cut; the plan node in the way is named.
        LineageError: The plan reads something that the store did not hand out.
    """
    if not keys or not set(keys) <= set(frame.columns):
        do = f"name columns that build returns: {', '.join(frame.columns)}"
        raise CutError("A table is refreshed by columns of its own.", found=f"by_key({', '.join(keys)})", do=do)
    if function := unsteady(frame):
        raise _Stuck(keys, f"{function} is not the same in each run", OTHERWISE)
    plan = analysed(frame)
    places = [frame.columns.index(key) for key in keys]
    options = _Proof(keys, token, {}, python_by_key).options(plan, places)
    attempts = [dict.fromkeys(options, 0)]
    first: _Stuck | None = None
    for attempt in attempts:
        cut = {table: options[table][choice] for table, choice in attempt.items() if choice < len(options[table])}
        try:
            if cut:
                _Proof(keys, token, cut, python_by_key).prove(plan, places)
                return cut
        except _Stuck as stuck:
            first = first or stuck
            others = ({**attempt, table: attempt[table] + 1} for table in sorted(stuck.tables))
            attempts += [other for other in others if other not in attempts]
    assert first is not None
    raise first


class _Proof:
    """One way up the plan with some tables cut, each by the columns that `cut` says."""

    def __init__(self, names: tuple[str, ...], token: str, cut: dict[str, tuple[str, ...]], python_by_key: bool) -> None:
        self.names, self.token, self.cut, self.python_by_key = names, token, cut, python_by_key
        self.common: dict[int, _Rows] = {}  # common table expressions by id
        self.leaves: dict[str, list[dict[str, int]]] = defaultdict(list)
        self.links: dict[int, set[int]] = defaultdict(set)
        self.computed: dict[int, str] = {}

    def prove(self, plan: Node, places: list[int]) -> None:
        """Prove that the output is keyed by the columns in these places."""
        rows = self.visit(plan)
        for name, place, key in zip(self.names, places, rows.keys, strict=True):
            if not key.told_by({rows.output[place]}):
                raise self.stuck("the output", [rows], f"has a {name} that is not always the key by which its row is cut", CARRY)

    def options(self, plan: Node, places: list[int]) -> dict[str, list[tuple[str, ...]]]:
        """The columns by which each table might be cut: those that are linked to the output's keys where it is read."""
        rows = self.visit(plan)
        linked = [self.linked(rows.output[place]) for place in places]
        held = {
            table: [list(dict.fromkeys(n for leaf in self.leaves[table] for n in leaf if leaf[n] in near)) for near in linked]
            for table in sorted(rows.tables)
        }
        options = {table: list(product(*columns)) for table, columns in held.items() if all(columns)}
        if not options:
            found = []
            for place, (name, near) in enumerate(zip(self.names, linked, strict=True)):
                columns = [f"{table}.{column}" for table, columns in held.items() for column in columns[place]]
                computed = sorted(f"computed by {self.computed[one]}" for one in near & self.computed.keys())
                found.append(f"{name} is {' or '.join(columns or computed or ['computed'])}")
            raise _Stuck(self.names, "; ".join(found), "refresh by keys that one input holds as columns")
        return options

    def linked(self, attribute: int) -> set[int]:
        found, new = set(), {attribute}
        while new:
            found |= new
            new = {other for one in new for other in self.links[one]} - found
        return found

    def link(self, one: int, other: int) -> None:
        self.links[one].add(other)
        self.links[other].add(one)

    def stuck(self, node: Node | str, over: Iterable[_Rows], why: str, do: str) -> _Stuck:
        tables = _tables(over)
        name = node if isinstance(node, str) else kind_of(node)
        found = f"{name} over {_and(tables)} {why}" if tables else f"{name} {why}"
        return _Stuck(self.names, found, do, tables & self.cut.keys())

    def visit(self, node: Node) -> _Rows:
        kind = kind_of(node)
        if is_leaf(node):
            return self.leaf(node)
        if kind == "WithCTE":
            for index in node["cteDefs"]:
                self.common[node["nodes"][index]["id"]] = self.visit(node["nodes"][index])
            return self.visit(node["nodes"][node["plan"]])
        handler = getattr(self, f"on_{kind}", None)
        if kind in PICKING:
            raise self.stuck(node, [], "picks rows by their place", "rank rows in a window that is partitioned by the keys")
        if handler is None and kind not in KEEPING:
            raise self.stuck(node, [], "is a step of which nothing is known here", OTHERWISE)
        children = [self.visit(child) for child in node["nodes"]]
        self.check_expressions(node)
        rows = handler(node, *children) if handler else children[0]
        for name, key in zip(self.names, rows.keys or (), strict=False):
            if not key.covers:
                kept = _names(node.get("projectList") or node.get("aggregateExpressions") or [])
                raise self.stuck(node, [rows], f"loses {name}" + (f", with {kept} left" if kept else ""), CARRY)
        return rows

    def check_expressions(self, node: Node) -> None:
        for part in (part for expression in expressions_of(node) for part in all_of(expression)):
            if isinstance(part.get("plan"), list) and (inner := self.visit(tree(part["plan"]))).keys:
                raise self.stuck(node, [inner], "has a sub-query over rows that are cut", "join on the keys instead")
            if part.get("name") == "_metadata":
                raise self.stuck(node, [], "looks at the files of an input", OTHERWISE)
            if "evalType" in part:
                maps = kind_of(node) in MAPPING
                if not (maps and self.python_by_key):
                    do = KEEPS_TO_KEYS if maps else OTHERWISE
                    raise self.stuck(node, [], "has a Python function, which may see many rows at once", do)

    def leaf(self, alias: Node) -> _Rows:
        table, columns = leaf(alias, self.token)
        self.leaves[table].append(columns)
        cut_by = self.cut.get(table)
        keys = tuple(_Key().also({columns[name]}) for name in cut_by) if cut_by else None
        return _Rows(list(columns.values()), frozenset({table}), keys)

    def on_OneRowRelation(self, node: Node) -> _Rows:
        return _Rows([])

    def on_Range(self, node: Node) -> _Rows:
        return _Rows(_ids(node["output"]))

    def on_CTERelationRef(self, node: Node) -> _Rows:
        return self.placed(self.common[node["cteId"]], _ids(node["output"]))

    # Nodes that look at one row at a time

    def on_Project(self, node: Node, child: _Rows) -> _Rows:
        return self.computing(_ids(node["projectList"]), node["projectList"], child)

    def on_Filter(self, node: Node, child: _Rows) -> _Rows:
        pairs = self.equalities(node)
        return replace(child, keys=child.keys and tuple(key.also(key.equal_by(pairs)) for key in child.keys))

    def on_Generate(self, node: Node, child: _Rows) -> _Rows:
        if child.keys and kind_of(tree(node["generator"])) not in ROW_GENERATORS:
            raise self.stuck(node, [child], "makes rows by a function that may see many rows", OTHERWISE)
        return replace(child, output=child.output + _ids(node["generatorOutput"]))

    def on_Expand(self, node: Node, child: _Rows) -> _Rows:
        output = _ids(node["output"])
        return _together([self.computing(output, projection, child) for projection in node["projections"]])

    def on_MapInArrow(self, node: Node, child: _Rows) -> _Rows:
        """What a function makes of the child's rows; it carries a key through where both have a column of its name."""
        made = [tree(nodes) for nodes in node["output"]]
        before, after = ({one["name"]: id_of(one) for one in side} for side in (tree(node["functionExpr"])["nodes"], made))
        names = {before[name]: [after[name]] for name in self.names if name in before and name in after}
        for old, (new,) in names.items():
            self.link(new, old)
        carried = {new for (new,) in names.values()}
        self.computed |= {id_of(one): "a Python function" for one in made if id_of(one) not in carried}
        return _Rows(list(map(id_of, made)), child.tables, child.keys and tuple(key.renamed(names) for key in child.keys))

    on_MapInPandas = on_MapInArrow

    # Nodes that put rows together

    def on_Aggregate(self, node: Node, child: _Rows) -> _Rows:
        self.check_goes_by_keys(node, node["groupingExpressions"], child)
        return self.computing(_ids(node["aggregateExpressions"]), node["aggregateExpressions"], child)

    def on_Window(self, node: Node, child: _Rows) -> _Rows:
        self.check_goes_by_keys(node, node["partitionSpec"], child)
        return replace(child, output=child.output + _ids(node["windowExpressions"]))

    def on_Deduplicate(self, node: Node, child: _Rows) -> _Rows:
        self.check_goes_by_keys(node, node["keys"], child)
        return child

    def on_Union(self, node: Node, *children: _Rows) -> _Rows:
        whole = [child for child in children if not child.keys]
        if 0 < len(whole) < len(children):
            raise self.stuck(node, children, f"takes all rows of {_and(_tables(whole))}, which is not cut", LOOK_UP)
        return _together([self.placed(child, children[0].output) for child in children])

    def on_Intersect(self, node: Node, left: _Rows, right: _Rows) -> _Rows:
        if left.keys and not right.keys:
            return replace(left, tables=_tables([left, right]))
        return self.on_Union(node, left, right)

    on_Except = on_Intersect

    def on_Join(self, node: Node, left: _Rows, right: _Rows) -> _Rows:
        kind = node["joinType"].get("object", "").rpartition(".")[2].rstrip("$")
        if kind not in JOINS:
            raise self.stuck(node, [], "is of a kind of which nothing is known here", OTHERWISE)
        pairs = self.equalities(node)
        rows = _Rows(left.output + ([] if kind in ONE_SIDED else right.output), _tables([left, right]))
        if not left.keys and not right.keys:
            return rows
        for side, keeps in ((left, KEEPS_LEFT), (right, KEEPS_RIGHT)):
            if kind in keeps and not side.keys:
                why = f"({kind}) keeps all rows of {_and(side.tables)}, which is not cut"
                raise self.stuck(node, [rows], why, LOOK_UP)
        for name, one, other in zip(self.names, left.keys or (), right.keys or (), strict=False):
            if not one.equal_by(pairs) & other.equal_by([]):
                why = f"({kind}) does not make {name} equal on both sides, which are both cut"
                raise self.stuck(node, [rows], why, "join by all refresh keys")
        if kind in ONE_SIDED:
            return replace(rows, keys=left.keys)
        nothing = [_Key()] * len(self.names)
        sides = zip(left.keys or nothing, right.keys or nothing, strict=True)
        return replace(rows, keys=tuple(_joined(kind, one, other, pairs) for one, other in sides))

    # Parts of these

    def computing(self, output: list[int], expressions: list[list[Node]], child: _Rows) -> _Rows:
        """The rows whose attributes are computed from one row of `child` each, or from one group."""
        found = {new: _alternatives(tree(nodes)) for new, nodes in zip(output, expressions, strict=True)}
        names: dict[int, list[int]] = defaultdict(list)
        for new, attributes in found.items():
            for attribute in attributes:
                self.link(new, attribute)
            if len(attributes) == 1:
                names[attributes[0]].append(new)
        self.computed |= {new: _maker(tree(nodes)) for new, nodes in zip(output, expressions, strict=True) if not found[new]}
        if not child.keys:
            return _Rows(output, child.tables)
        chosen = [{new for new, attributes in found.items() if key.first_of(attributes)} for key in child.keys]
        keys = (key.renamed(names).also(new) for key, new in zip(child.keys, chosen, strict=True))
        return _Rows(output, child.tables, tuple(keys))

    def placed(self, rows: _Rows, output: list[int]) -> _Rows:
        """The same rows where the attribute in each place has another id."""
        names: dict[int, list[int]] = defaultdict(list)
        for new, old in zip(output, rows.output, strict=True):
            self.link(new, old)
            names[old].append(new)
        return _Rows(output, rows.tables, rows.keys and tuple(key.renamed(names) for key in rows.keys))

    def equalities(self, node: Node) -> Pairs:
        """The attributes that are equal wherever a node's condition holds."""
        pairs, parts = [], [tree(node["condition"])] if node.get("condition") else []
        for part in parts:
            if kind_of(part) == "And":
                parts += part["nodes"]
            elif kind_of(part) in EQUALITIES and all(kind_of(side) == "AttributeReference" for side in part["nodes"]):
                pairs.append((id_of(part["nodes"][0]), id_of(part["nodes"][1])))
        for one, other in pairs:
            self.link(one, other)
        return pairs

    def check_goes_by_keys(self, node: Node, expressions: list[list[Node]], child: _Rows) -> None:
        parts = [_alternatives(tree(nodes)) for nodes in expressions]
        columns = {attributes[0] for attributes in parts if len(attributes) == 1}
        for name, key in zip(self.names, child.keys or (), strict=False):
            if not key.told_by(columns) and not any(map(key.first_of, parts)):
                raise self.stuck(node, [child], f"goes by {_names(expressions) or 'nothing'}, not by {name}", GO_BY_KEYS)


def _joined(kind: str, left: _Key, right: _Key, pairs: Pairs) -> _Key:
    """Where the rows of a join hold a key."""
    partial = left.partial | right.partial
    if kind == "FullOuter":
        return _Key(frozenset(one | other for one in left.covers for other in right.covers), partial)
    if kind in ("LeftOuter", "RightOuter"):
        return _Key((left if kind == "LeftOuter" else right).covers, partial)
    both = _Key(left.covers | right.covers, partial)
    return both.also(both.equal_by(pairs))


def _together(parts: list[_Rows]) -> _Rows:
    """The rows of several nodes, which hold a key where all of them do."""

    def common(one: _Key, other: _Key) -> _Key:
        return _Key(one.covers & other.covers, one.partial & other.partial)

    keys = [part.keys or () for part in parts]
    return _Rows(parts[0].output, _tables(parts), tuple(reduce(common, same) for same in zip(*keys, strict=True)) or None)


def _alternatives(expression: Node) -> list[int]:
    """The attributes of which an expression is the first that is not null; none if it is computed in another way."""
    kind = kind_of(expression)
    if kind == "AttributeReference":
        return [id_of(expression)]
    parts = [_alternatives(part) for part in expression["nodes"]] if kind in ("Alias", "Coalesce") else []
    return [attribute for part in parts for attribute in part] if all(parts) else []


def _maker(expression: Node) -> str:
    """What an expression is computed by, for a message."""
    return next(kind for kind in map(kind_of, all_of(expression)) if kind not in ("Alias", "AggregateExpression"))


def _ids(expressions: list[list[Node]]) -> list[int]:
    return [id_of(tree(nodes)) for nodes in expressions]


def _names(expressions: list[list[Node]]) -> str:
    return ", ".join(tree(nodes).get("name") or kind_of(tree(nodes)) for nodes in expressions)


def _tables(parts: Iterable[_Rows]) -> frozenset[str]:
    return frozenset(table for rows in parts for table in rows.tables)


def _and(tables: frozenset[str]) -> str:
    return ", ".join(sorted(tables)) or "no table"
