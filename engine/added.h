/*
 * added.h
 *	  Added tokens: literal strings that are tokens wherever they are allowed.
 */
#ifndef QWEN_ADDED_H
#define QWEN_ADDED_H

#include "buffer.h"
#include "error.h"

typedef struct qwen_added_token
{
	char *text; /* NUL-terminated */
	size_t len;
	int32_t id;
} qwen_added_token;

/* A set of them, searched together. A zeroed struct is empty. */
typedef struct qwen_added_set
{
	qwen_added_token *tokens; /* [n] sorted by their bytes once qwen_added_finish has run */
	size_t n;
	size_t cap;
	bool first[256]; /* bytes that some token begins with */
} qwen_added_set;

qwen_status qwen_added_add(qwen_added_set *set, const char *text, size_t len, int32_t id, qwen_error *err);

/* Sorts the set; texts that occur twice are refused. */
qwen_status qwen_added_finish(qwen_added_set *set, qwen_error *err);
void qwen_added_free(qwen_added_set *set);

/* The id of the token with exactly that text, or -1. */
int32_t qwen_added_find(const qwen_added_set *set, const char *text, size_t len);

/*
 * The leftmost, there the longest, token that lies wholly in text[begin..end).  Returns its index in set->tokens and
 * sets *at to where it begins, or returns -1.
 */
int64_t qwen_added_search(const qwen_added_set *set, const char *text, size_t begin, size_t end, size_t *at);

#endif
