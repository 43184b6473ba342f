/*
 * request.h
 *	  A REQUEST frame's payload as a qwen_request.
 */
#ifndef QWEN_REQUEST_H
#define QWEN_REQUEST_H

#include "engine.h"

/* A request and what its pointers need to stay valid. Texts point into the payload. */
typedef struct qwen_decoded
{
	qwen_request request;
	json_t *messages;  /* owned */
	json_t *tools;     /* owned */
	int32_t *ids;      /* owned, aligned copy */
	const char **stop; /* owned array */
	size_t *stop_len;  /* owned array */
} qwen_decoded;

/* Checks and decodes a payload; on failure nothing is left to free. The payload must outlive the result. */
qwen_status qwen_request_decode(uint64_t id, const char *payload, size_t len, qwen_decoded *out, qwen_error *err);
void qwen_decoded_free(qwen_decoded *d);

#endif
