"""Reads `protocol/schema/client.fbs`, and makes and reads the tables it describes.

No code is generated: slots and types come from the schema's text when the program starts. Knows what
the schema uses and no more: tables, structs of scalars, enums, vectors of all these, strings. Vectors of
structs are only read.
"""

import re

import flatbuffers
from flatbuffers import encode
from flatbuffers import number_types as numbers
from flatbuffers.table import Table

SCALARS = {
    "bool": numbers.BoolFlags,
    "ubyte": numbers.Uint8Flags,
    "uint16": numbers.Uint16Flags,
    "uint32": numbers.Uint32Flags,
    "uint64": numbers.Uint64Flags,
    "int64": numbers.Int64Flags,
    "float32": numbers.Float32Flags,
}


class Malformed(Exception):
    """A table lacks what the schema requires."""


class Schema:
    """The tables of a schema, each a list of `(name, type, required)` by slot."""

    def __init__(self, text):
        text = re.sub(r"//[^\n]*", "", text)
        self.tables, self.structs, self.enums = {}, {}, {}
        for kind, name, base, body in re.findall(
            r"\b(table|struct|enum)\s+(\w+)\s*(?::\s*(\w+)\s*)?\{([^}]*)\}", text
        ):
            if kind == "enum":
                members = re.findall(r"(\w+)\s*=\s*(\d+)", body)
                self.enums[name] = (base, {member: int(value) for member, value in members})
                continue
            fields = [
                (field, type_, "required" in attributes)
                for field, type_, attributes in re.findall(
                    r"(\w+)\s*:\s*(\[?\w+\]?)\s*(\([^)]*\))?\s*;", body
                )
            ]
            (self.tables if kind == "table" else self.structs)[name] = fields

    def scalar(self, type_):
        """The number type of a scalar or enum; `None` for what is neither."""
        if type_ in self.enums:
            type_ = self.enums[type_][0]
        return SCALARS.get(type_)

    # Making tables.

    def encode(self, name, values):
        """The bytes of a table. What `values` does not hold is left out."""
        unknown = set(values) - {field for field, _, _ in self.tables[name]}
        assert not unknown, f"{name} has no {unknown}"
        builder = flatbuffers.Builder(256)
        builder.Finish(self._table(builder, name, values))
        return bytes(builder.Output())

    def _table(self, builder, name, values):
        fields = self.tables[name]
        # What is not inline comes first.
        offsets = {
            field: self._apart(builder, type_, values[field])
            for field, type_, _ in fields
            if values.get(field) is not None
            and self.scalar(type_) is None
            and type_ not in self.structs
        }
        builder.StartObject(len(fields))
        for slot, (field, type_, _) in enumerate(fields):
            value = values.get(field)
            if value is None:
                continue
            if field in offsets:
                builder.PrependUOffsetTRelativeSlot(slot, offsets[field], 0)
            elif type_ in self.structs:
                builder.PrependStructSlot(slot, self._struct(builder, type_, value), 0)
            else:
                builder.PrependSlot(self.scalar(type_), slot, value, 0)
        return builder.EndObject()

    def _apart(self, builder, type_, value):
        if type_ == "string":
            return builder.CreateString(value)
        if type_ == "[ubyte]":
            return builder.CreateByteVector(value)
        item = self.scalar(type_[1:-1])
        if item is not None:
            builder.StartVector(item.bytewidth, len(value), item.bytewidth)
            for number in reversed(value):
                builder.Prepend(item, number)
            return builder.EndVector()
        if type_.startswith("["):
            items = [self._table(builder, type_[1:-1], item) for item in value]
            builder.StartVector(4, len(items), 4)
            for item in reversed(items):
                builder.PrependUOffsetTRelative(item)
            return builder.EndVector()
        return self._table(builder, type_, value)

    def _struct(self, builder, name, value):
        align, size, fields = self._layout(name)
        builder.Prep(align, size)
        end = size
        for field, flags, place in reversed(fields):
            builder.Pad(end - place - flags.bytewidth)
            builder.Prepend(flags, value[field])
            end = place
        return builder.Offset()

    def _layout(self, name):
        """Alignment and size of a struct, and `(field, flags, place)` of each field."""
        fields, size = [], 0
        for field, type_, _ in self.structs[name]:
            flags = self.scalar(type_)
            size += -size % flags.bytewidth
            fields.append((field, flags, size))
            size += flags.bytewidth
        align = max(flags.bytewidth for _, flags, _ in fields)
        return align, size + -size % align, fields

    # Reading tables.

    def decode(self, name, data):
        """The fields of a table that was received; an absent one is `None`, a scalar its default."""
        try:
            root = encode.Get(numbers.UOffsetTFlags.packer_type, data, 0)
            return self._read(name, Table(data, root))
        except (IndexError, ValueError, TypeError) as error:
            raise Malformed(f"{name}: {error}") from error

    def _read(self, name, table):
        found = {}
        for slot, (field, type_, required) in enumerate(self.tables[name]):
            offset = table.Offset(4 + 2 * slot)
            flags = self.scalar(type_)
            if flags is not None:
                found[field] = table.Get(flags, table.Pos + offset) if offset else flags.py_type(0)
            elif offset:
                found[field] = self._read_apart(type_, table, offset)
            elif required:
                raise Malformed(f"{name} has no {field}")
            else:
                found[field] = None
        return found

    def _read_apart(self, type_, table, offset):
        if type_ == "string":
            return table.String(table.Pos + offset).decode()
        if type_ in self.structs:
            _, _, fields = self._layout(type_)
            start = table.Pos + offset
            return {field: table.Get(flags, start + place) for field, flags, place in fields}
        if not type_.startswith("["):
            return self._read(type_, Table(table.Bytes, table.Indirect(table.Pos + offset)))
        start, count = table.Vector(offset), table.VectorLen(offset)
        if type_ == "[ubyte]":
            return bytes(table.Bytes[start : start + count])
        item = type_[1:-1]
        flags = self.scalar(item)
        if flags is not None:
            return [table.Get(flags, start + flags.bytewidth * number) for number in range(count)]
        if item in self.structs:
            _, size, fields = self._layout(item)
            return [
                {field: table.Get(flags, start + size * number + place) for field, flags, place in fields}
                for number in range(count)
            ]
        return [
            self._read(item, Table(table.Bytes, table.Indirect(start + 4 * number)))
            for number in range(count)
        ]
