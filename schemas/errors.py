"""Every failure upwell knows, and what becomes of it (DESIGN 5).

    UpwellError
     |- Retry                      in place, nothing acknowledged; HALT at a deadline
     |   |- RegistryUnavailable
     |   |- KafkaUnavailable
     |   |- SourceUnavailable
     |   |   `- SourceRefused      wrong password, no such database: a command or a start ends with 2
     |   |- SinkUnavailable
     |   |   `- SinkRefused
     |   |- ConnectUnavailable
     |   |- RoundIncomplete        the source's changes do not arrive in the sink in time: connector or workers
     |   |- GenerationDropped      a generation was dropped while it was worked on
     |   `- Conflict               deadlock, serialization failure, a row changed under us
     |- DeadLetter                 the record is kept whole in the sink, the stream goes on
     |   |- DecodeError
     |   |   |- BadMagicByte
     |   |   `- MalformedEnvelope
     |   |- TemplateError          one row that the template cannot render
     |   |- DocumentTooLarge
     |   |- RecordRejected         the sink refuses the row, by SQLSTATE class
     |   |- UnusableVector         NaN, infinite or zero: this text only
     |   `- NeverEmbedded          the worker died, or the model hung, with it each time
     |- Blocked                    the collection waits, un-acknowledged, until mended
     |   |- IncompatibleSchema
     |   |- ColumnMissing
     |   |- ColumnRetyped          a column has another type at the source than in the sink
     |   `- UnresolvedPlaceholder
     `- Halt                       exit 2 with one line, nothing acknowledged
         |- SettingsError
         |- MigrationNeeded
         |- ModelUnavailable
         |- DimensionMismatch
         |- LineageMismatch        unknown topic id or partition count
         |- GenerationMismatch     changed template, model or chunking without a generation command
         |- PositionConflict       another owner, or a restored sink: exit, the next start re-reads
         |- DeploymentChanged      another lineage, other collections or columns: exit, the next start has them
         |- ModelHung              the model does not answer: exit, the next start loads it anew
         |- GapFound               the log no longer holds what the sink has not taken in
         `- SlotTaken

The class fixes the outcome; callers never parse messages.
"""

from __future__ import annotations


class UpwellError(Exception):
    """Base of all. The message is one line for a person and holds no secret."""

    exit_code = 2


class Retry(UpwellError):
    """A neighbour is not there now; the same call may succeed later."""

    exit_code = 3


class RegistryUnavailable(Retry):
    """The schema registry does not answer, or does not know a schema id yet."""


class KafkaUnavailable(Retry):
    """The broker does not answer."""


class SourceUnavailable(Retry):
    """The source database does not answer."""


class SinkUnavailable(Retry):
    """The sink database does not answer."""


class SourceRefused(SourceUnavailable):
    """The source does not let this user in. A running worker tries again: a password may be changed just now."""

    exit_code = 2


class SinkRefused(SinkUnavailable):
    """The sink does not let this user in. A running worker tries again, as for the source."""

    exit_code = 2


class ConnectUnavailable(Retry):
    """Kafka Connect does not answer, or is rebalancing."""


class RoundIncomplete(Retry):
    """What the source has committed is not taken in, in time: the connector or the workers do not go on."""


class GenerationDropped(Retry):
    """A generation was dropped while one worked for it: what was claimed of it is gone."""


class Conflict(Retry):
    """Deadlock, serialization failure, or a row that changed under us: the transaction is tried again."""


class DeadLetter(UpwellError):
    """This record cannot be taken in as it is; it is kept whole and counts as stale."""


class DecodeError(DeadLetter):
    """The bytes are not the Avro that their schema id promises."""


class BadMagicByte(DecodeError):
    """The message does not begin with the Confluent wire format's zero byte and 4-byte id."""


class MalformedEnvelope(DecodeError):
    """The record decodes, but is no Debezium envelope or lacks a field that every envelope has."""


class TemplateError(DeadLetter):
    """The template cannot render this one row."""


class DocumentTooLarge(DeadLetter):
    """The document is longer than the collection's `max_document_bytes`."""


class RecordRejected(DeadLetter):
    """The sink refuses the row (SQLSTATE classes 22 and 23)."""


class UnusableVector(DeadLetter):
    """The model made a NaN, infinite or zero vector of this text."""


class NeverEmbedded(DeadLetter):
    """Each attempt at this text ended with its worker, the last ones with this text alone."""


class Blocked(UpwellError):
    """The collection waits, un-acknowledged, until somebody mends what the message names."""


class IncompatibleSchema(Blocked):
    """A writer schema lacks a column that the collection needs, or changed its type."""


class ColumnMissing(Blocked):
    """A column that the template or the metadata names is gone."""


class ColumnRetyped(Blocked):
    """A column of the metadata has another type than the sink's, which refuses a row for it."""


class UnresolvedPlaceholder(Blocked):
    """Debezium's unavailable-value placeholder stands where a value is needed and none is stored."""


class Halt(UpwellError):
    """The deployment is wrong; every record would fail. Nothing is acknowledged, exit 2."""


class SettingsError(Halt):
    """A setting, the spec or a flag is not valid."""


class MigrationNeeded(Halt):
    """The sink or source schema is older, or newer, than this version of upwell."""


class ModelUnavailable(Halt):
    """The model cannot be loaded."""


class DimensionMismatch(Halt):
    """The model's vectors have another dimension than the generation's."""


class LineageMismatch(Halt):
    """A topic's id or partition count is not the one recorded when upwell created it."""


class GenerationMismatch(Halt):
    """Template, model or chunking are those of no generation that is fed, or a query's model is not the live one."""


class PositionConflict(Halt):
    """The sink's position is not the one this owner last saw: exit, the next start begins at the sink's.

    Unlike the other halts a restart cures it, so the exit code is not 2 (DESIGN 4, H21).
    """

    exit_code = 1


class DeploymentChanged(Halt):
    """What is captured is not what this worker was started for: exit, the next start has what is captured now."""

    exit_code = 1


class ModelHung(Halt):
    """The model has not answered for too long. Its thread cannot be ended: exit, the next start loads it anew."""

    exit_code = 1


class GapFound(Halt):
    """The log's start has passed the sink's position: changes are lost, `connector rebuild` is the way out."""


class SlotTaken(Halt):
    """Another live worker has this worker slot."""
