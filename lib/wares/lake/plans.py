"""Spark's analysed plan as trees. Spark writes a tree, of plan nodes or of expressions, as the list of its nodes in pre-order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from py4j.java_gateway import JavaObject
from pyspark.sql import DataFrame, SparkSession

from wares.lake.java import java_class

Node = dict[str, Any]
"""A node as Spark writes it; `nodes` are its children."""


def analysed(frame: DataFrame) -> Node:
    """The root of a frame's analysed plan, with what its Expand nodes project, which Spark leaves out for an unpivot."""
    root = frame._jdf.queryExecution().analyzed()
    nodes = json.loads(root.toJSON())
    expands = [node for node in _written(nodes) if kind_of(node) == "Expand"]
    if expands:
        projected = _projections(root, frame.sparkSession)
        for node in expands:
            node["projections"] = projected[tuple(id_of(attribute[0]) for attribute in node["output"])]
    return tree(nodes)


def _written(part: Any) -> Iterator[Node]:
    """The nodes in a part of a written plan, also those within expressions, such as of a sub-query."""
    if isinstance(part, dict) and "num-children" in part:
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _written(inner)


def _projections(root: JavaObject, spark: SparkSession) -> dict[tuple[int, ...], list[list[list[Node]]]]:
    """What each Expand node of a plan projects, by the ids of its output."""
    listed = java_class(spark, "scala.jdk.javaapi.CollectionConverters").asJava
    found, plans = {}, [root]
    while plans:
        plan = plans.pop()
        plans += [*listed(plan.children()), *listed(plan.subqueries())]
        if plan.nodeName() == "Expand":
            output = tuple(attribute.exprId().id() for attribute in listed(plan.output()))
            found[output] = [[json.loads(e.toJSON()) for e in listed(row)] for row in listed(plan.projections())]
    return found


def tree(nodes: list[Node]) -> Node:
    """The root of the tree that a list holds."""
    if "nodes" not in nodes[0]:
        _next(iter(nodes))
    return nodes[0]


def _next(rest: Iterator[Node]) -> Node:
    node = next(rest)
    node["nodes"] = [_next(rest) for _ in range(node["num-children"])]
    return node


def kind_of(node: Node) -> str:
    """The class of a node without its package, such as `Project`."""
    return node["class"].rpartition(".")[2]


def id_of(node: Node) -> int:
    """The id of an attribute, or of the attribute that an alias makes; unique in the plan."""
    return node["exprId"]["id"]


def all_of(expression: Node) -> Iterator[Node]:
    """An expression and all parts of it."""
    yield expression
    for part in expression["nodes"]:
        yield from all_of(part)


def expressions_of(node: Node) -> Iterator[Node]:
    """The expressions that a plan node holds, in whichever of its fields."""
    return (expression for name, value in node.items() if name != "nodes" for expression in _trees(value))


def _trees(value: Any) -> Iterator[Node]:
    if isinstance(value, list) and value:
        if isinstance(value[0], dict) and "class" in value[0]:
            yield tree(value)
        else:
            for part in value:
                yield from _trees(part)


def unsteady(frame: DataFrame) -> str | None:
    """The function that makes a frame's rows differ from run to run, and where it is; None if Spark knows of none."""
    plan = frame._jdf.queryExecution().analyzed()
    if plan.deterministic():
        return None
    node = _deepest(plan)
    return f"{_deepest(_unsteady(node.expressions())[0]).prettyName()} in {node.nodeName()}"


def _deepest(node: JavaObject) -> JavaObject:
    while below := _unsteady(node.children()):
        node = below[0]
    return node


def _unsteady(nodes: JavaObject) -> list[JavaObject]:
    return [node for node in map(nodes.apply, range(nodes.size())) if not node.deterministic()]
