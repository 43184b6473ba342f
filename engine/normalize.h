/*
 * normalize.h
 *	  Unicode normalisation form C of a text in pieces.
 */
#ifndef QWEN_NORMALIZE_H
#define QWEN_NORMALIZE_H

#include "buffer.h"
#include "error.h"

/* Whether text[0..len), valid UTF-8, is certainly in form C already. A quick look: false may still be in form C. */
bool qwen_nfc_is_plain(const char *text, size_t len);

/* Whether form C of the text before a character and of the text from it on, joined, is form C of the whole. */
bool qwen_nfc_is_boundary(const char *text, size_t len);

/* Appends form C of text[0..len), valid UTF-8, to out. */
qwen_status qwen_nfc_append(const char *text, size_t len, qwen_bytes *out, qwen_error *err);

#endif
