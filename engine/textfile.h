/*
 * textfile.h
 *	  Reading a whole small file of a model folder.
 */
#ifndef QWEN_TEXTFILE_H
#define QWEN_TEXTFILE_H

#include "buffer.h"
#include "error.h"

/*
 * Appends the content of dir/name to *out, which the caller frees in any case.  QWEN_NOT_FOUND when there is no such
 * file, QWEN_TOO_LONG when it has more than max bytes.
 */
qwen_status qwen_read_text_file(const char *dir, const char *name, size_t max, qwen_bytes *out, qwen_error *err);

#endif
