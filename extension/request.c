/*-------------------------------------------------------------------------
 *
 * request.c
 *	  The bytes of a request.
 *
 * A request is a header and fields, all texts in UTF-8 (engine/protocol.h).
 * Columns are in the encoding of their database, so this is where texts are
 * converted.  The server's own functions for that raise an error at the
 * first character that cannot be converted; here such a character is the
 * failure of one row, to be reported as the caller wants it.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "catalog/namespace.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"

#include "answer.h"

static void add_texts(StringInfo request, const QwenOptions *options);
static void log_subject(qwen_field_tag tag, const char *text, Size length);
static void add_option_text(StringInfo request, qwen_field_tag tag, const char *text, Size length);
static bool is_valid(const char *text, Size length, int encoding, qwen_wire_error *error);
static char *run_conversion(char *text, Size length, int from, int to, Size *result_length, qwen_wire_error *error);
static void set_untranslatable(qwen_wire_error *error, const char *text, Size length, int from, int to);

/* ---- building ---- */

void
qwen_request_begin(StringInfo request, const QwenOptions *options)
{
	qwen_request_header head = options->head;

	head.session = MyProcPid;
	initStringInfo(request);
	appendBinaryStringInfo(request, (const char *) &head, sizeof(head));
	add_texts(request, options);
}

void
qwen_request_begin_plain(StringInfo request, qwen_request_kind kind)
{
	qwen_request_header head = {.protocol = QWEN_PROTOCOL,
								.kind = kind,
								.max_tokens = 1,
								.top_k = QWEN_UNSET_INT,
								.temperature = 0,
								.top_p = QWEN_UNSET_FLOAT,
								.min_p = QWEN_UNSET_FLOAT,
								.presence_penalty = QWEN_UNSET_FLOAT,
								.frequency_penalty = QWEN_UNSET_FLOAT,
								.repetition_penalty = QWEN_UNSET_FLOAT,
								.priority = qwen_priority,
								.session = MyProcPid};

	initStringInfo(request);
	appendBinaryStringInfo(request, (const char *) &head, sizeof(head));
}

/* Messages of a chat carry their system message themselves. */
static void
add_texts(StringInfo request, const QwenOptions *options)
{
	ListCell *lc;

	if (options->system != NULL && options->head.kind != QWEN_KIND_CHAT)
		add_option_text(request, QWEN_FIELD_SYSTEM, options->system, strlen(options->system));
	foreach (lc, options->stop)
	{
		text *stop = lfirst(lc);

		add_option_text(request, QWEN_FIELD_STOP, VARDATA_ANY(stop), VARSIZE_ANY_EXHDR(stop));
	}
}

/* Options are the same for all rows, hence no failure of a row. */
static void
add_option_text(StringInfo request, qwen_field_tag tag, const char *text, Size length)
{
	qwen_wire_error error;

	if (!qwen_request_add_text(request, tag, text, length, &error))
		qwen_raise(&error);
}

void
qwen_request_add_bytes(StringInfo request, qwen_field_tag tag, const void *data, Size length)
{
	Size size = qwen_field_size(length);

	if (size >= MaxAllocSize)
		ereport(ERROR, (errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
						errmsg("a text of %zu bytes is too long for a request", length)));
	enlargeStringInfo(request, (int) size);
	qwen_field_put(request->data + request->len, tag, data, (uint32) length);
	request->len += (int) size;
	request->data[request->len] = '\0';
	((qwen_request_header *) request->data)->n_fields++;
}

bool
qwen_request_add_text(StringInfo request, qwen_field_tag tag, const char *text, Size length, qwen_wire_error *error)
{
	Size utf8_length;
	char *utf8 = qwen_convert(unconstify(char *, text), length, GetDatabaseEncoding(), PG_UTF8, &utf8_length, error);

	if (utf8 == NULL)
		return false;
	log_subject(tag, text, length);
	qwen_request_add_bytes(request, tag, utf8, utf8_length);
	if (utf8 != text)
		pfree(utf8);
	return true;
}

static void
log_subject(qwen_field_tag tag, const char *text, Size length)
{
	if (qwen_log_prompts && (tag == QWEN_FIELD_PROMPT || tag == QWEN_FIELD_MESSAGES))
		ereport(LOG_SERVER_ONLY,
				(errmsg("qwen prompt: %.*s", (int) length, text), errhidestmt(true), errhidecontext(true)));
}

/* ---- encodings ---- */

char *
qwen_convert(char *text, Size length, int from, int to, Size *result_length, qwen_wire_error *error)
{
	*result_length = length;
	if (length == 0 || to == PG_SQL_ASCII)
		return text;

	/* SQL_ASCII means that nobody knows; UTF-8 is the only guess that can be checked. */
	if (from == to || from == PG_SQL_ASCII)
		return is_valid(text, length, to, error) ? text : NULL;
	return run_conversion(text, length, from, to, result_length, error);
}

static bool
is_valid(const char *text, Size length, int encoding, qwen_wire_error *error)
{
	if (pg_verify_mbstr(encoding, text, (int) length, true))
		return true;
	qwen_set_error(error, ERRCODE_CHARACTER_NOT_IN_REPERTOIRE, "text is not valid in encoding \"%s\"",
				   pg_encoding_to_char(encoding));
	return false;
}

static char *
run_conversion(char *text, Size length, int from, int to, Size *result_length, qwen_wire_error *error)
{
	Oid conversion = FindDefaultConversionProc(from, to);
	Size size = length * MAX_CONVERSION_GROWTH + 1;
	char *result;
	int converted;

	if (!OidIsValid(conversion))
		ereport(ERROR, (errcode(ERRCODE_UNDEFINED_FUNCTION),
						errmsg("default conversion function for encoding \"%s\" to \"%s\" does not exist",
							   pg_encoding_to_char(from), pg_encoding_to_char(to))));
	if (size > MaxAllocSize)
	{
		qwen_set_error(error, ERRCODE_PROGRAM_LIMIT_EXCEEDED, "text of %zu bytes is too long to be converted", length);
		return NULL;
	}

	result = palloc(size);
	converted = pg_do_encoding_conversion_buf(conversion, from, to, (unsigned char *) text, (int) length,
											  (unsigned char *) result, (int) size, true);
	if (converted < length)
	{
		set_untranslatable(error, text + converted, length - converted, from, to);
		pfree(result);
		return NULL;
	}
	*result_length = strlen(result);
	return result;
}

/* The server's words for it, with the bytes of the first character in question. */
static void
set_untranslatable(qwen_wire_error *error, const char *text, Size length, int from, int to)
{
	int n = Min(pg_encoding_mblen(from, text), length);
	char bytes[8 * 5 + 1] = "";

	for (int i = 0; i < Min(n, 8); i++)
		snprintf(bytes + strlen(bytes), sizeof(bytes) - strlen(bytes), "%s0x%02x", i > 0 ? " " : "",
				 (unsigned char) text[i]);
	qwen_set_error(error, ERRCODE_UNTRANSLATABLE_CHARACTER,
				   "character with byte sequence %s in encoding \"%s\" has no equivalent in encoding \"%s\"", bytes,
				   pg_encoding_to_char(from), pg_encoding_to_char(to));
}
