/*
 * request.c
 *	  A REQUEST frame's payload as a qwen_request: every length and number is
 *	  checked here, so that what follows can trust it.
 */
#include "request.h"

#include <stdlib.h>
#include <string.h>

/* More than anybody needs, few enough to search after every token. */
#define MAX_STOP_STRINGS 64

static qwen_status
read_header(const char *payload, size_t len, qwen_request_header *head, qwen_error *err)
{
	if (len < sizeof(*head))
		return qwen_fail(err, QWEN_INVALID, "request of %zu bytes is shorter than its header", len);
	memcpy(head, payload, sizeof(*head));
	if (head->protocol != QWEN_PROTOCOL)
		return qwen_fail(err, QWEN_INVALID, "request has protocol version %u, not %d", head->protocol, QWEN_PROTOCOL);
	return QWEN_OK;
}

static qwen_status
read_json(const qwen_field *f, const char *name, json_t **out, qwen_error *err)
{
	json_error_t where;

	if (*out)
		return qwen_fail(err, QWEN_INVALID, "%s given twice", name);
	*out = json_loadb(f->data, f->length, JSON_ALLOW_NUL, &where);
	if (!*out || !json_is_array(*out))
		return qwen_fail(err, QWEN_INVALID, "%s must be a JSON array", name);
	return QWEN_OK;
}

static qwen_status
read_ids(const qwen_field *f, qwen_decoded *d, qwen_error *err)
{
	size_t n = f->length / sizeof(int32_t);

	if (d->ids || f->length % sizeof(int32_t))
		return qwen_fail(err, QWEN_INVALID, "token ids are malformed");
	d->ids = malloc(f->length ? f->length : 1);
	if (!d->ids)
		return qwen_fail_memory(err, f->length);
	memcpy(d->ids, f->data, f->length);
	d->request.ids = d->ids;
	d->request.n_ids = n;
	return QWEN_OK;
}

static qwen_status
read_stop(const qwen_field *f, qwen_decoded *d, qwen_error *err)
{
	size_t n = d->request.n_stop;

	if (n == MAX_STOP_STRINGS)
		return qwen_fail(err, QWEN_INVALID, "more than %d stop strings", MAX_STOP_STRINGS);
	if (!d->stop)
	{
		d->stop = calloc(MAX_STOP_STRINGS, sizeof(*d->stop));
		d->stop_len = calloc(MAX_STOP_STRINGS, sizeof(*d->stop_len));
		if (!d->stop || !d->stop_len)
			return qwen_fail_memory(err, MAX_STOP_STRINGS * sizeof(*d->stop));
	}
	d->stop[n] = f->data;
	d->stop_len[n] = f->length;
	d->request.n_stop = n + 1;
	d->request.stop = d->stop;
	d->request.stop_len = d->stop_len;
	return QWEN_OK;
}

static qwen_status
read_field(const qwen_field *f, qwen_decoded *d, qwen_error *err)
{
	switch (f->tag)
	{
		case QWEN_FIELD_PROMPT:
			d->request.prompt = f->data;
			d->request.prompt_len = f->length;
			return QWEN_OK;
		case QWEN_FIELD_SYSTEM:
			d->request.system = f->data;
			d->request.system_len = f->length;
			return QWEN_OK;
		case QWEN_FIELD_MESSAGES:
			return read_json(f, "messages", &d->messages, err);
		case QWEN_FIELD_TOOLS:
			return read_json(f, "tools", &d->tools, err);
		case QWEN_FIELD_STOP:
			return read_stop(f, d, err);
		case QWEN_FIELD_IDS:
			return read_ids(f, d, err);
		default:
			return qwen_fail(err, QWEN_INVALID, "request has an unknown field %u", f->tag);
	}
}

/* Whether the fields that the kind needs are there. */
static qwen_status
check_kind(const qwen_request *r, qwen_error *err)
{
	bool ok;

	switch (r->head.kind)
	{
		case QWEN_KIND_COMPLETE:
			ok = r->prompt || r->ids;
			break;
		case QWEN_KIND_GENERATE:
		case QWEN_KIND_TOKENIZE:
		case QWEN_KIND_COUNT:
			ok = r->prompt != NULL && !r->ids;
			break;
		case QWEN_KIND_CHAT:
			ok = r->messages != NULL && !r->ids;
			break;
		case QWEN_KIND_DETOKENIZE:
			ok = r->ids != NULL;
			break;
		default:
			return qwen_fail(err, QWEN_INVALID, "unknown kind of request: %u", r->head.kind);
	}
	return ok ? QWEN_OK : qwen_fail(err, QWEN_INVALID, "request of kind %u lacks its subject", r->head.kind);
}

qwen_status
qwen_request_decode(uint64_t id, const char *payload, size_t len, qwen_decoded *out, qwen_error *err)
{
	const char *p = payload + sizeof(qwen_request_header);
	const char *end = payload + len;
	qwen_field field;

	memset(out, 0, sizeof(*out));
	*err = (qwen_error){0};
	out->request.id = id;
	if (read_header(payload, len, &out->request.head, err))
		return err->status;
	for (uint32_t i = 0; i < out->request.head.n_fields && err->status == QWEN_OK; i++)
	{
		if (!qwen_field_next(&p, end, &field))
			qwen_fail(err, QWEN_INVALID, "request ends in the middle of a field");
		else
			read_field(&field, out, err);
	}
	if (err->status == QWEN_OK && p != end)
		qwen_fail(err, QWEN_INVALID, "request has %zu bytes behind its last field", (size_t) (end - p));
	out->request.messages = out->messages;
	out->request.tools = out->tools;
	if (err->status == QWEN_OK)
		check_kind(&out->request, err);
	if (err->status != QWEN_OK)
		qwen_decoded_free(out);
	return err->status;
}

void
qwen_decoded_free(qwen_decoded *d)
{
	json_decref(d->messages);
	json_decref(d->tools);
	free(d->ids);
	free(d->stop);
	free(d->stop_len);
	memset(d, 0, sizeof(*d));
}
