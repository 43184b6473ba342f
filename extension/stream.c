/*-------------------------------------------------------------------------
 *
 * stream.c
 *	  qwen_stream: an answer row by row, while it is decoded.
 *
 * One row is returned for each call, so that a cursor sees a piece as soon
 * as the engine has sent it, and a cursor that is not read holds the engine
 * back: once the window of the request is full, its sequence rests
 * (engine/protocol.h).  In FROM the executor collects all rows first.
 *
 * A set-returning function is not told when its rows are no longer wanted
 * (LIMIT, rescan, end of the query), hence the callback of the expression
 * context.  After an error or a ROLLBACK nobody calls that either; then the
 * resource owner gives the request back (client.c).
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "funcapi.h"
#include "utils/builtins.h"

#include "answer.h"
#include "options.h"

typedef struct Stream
{
	QwenCall *call; /* NULL: the end has been reached */
	QwenOnError on_error;
	int seq;     /* rows returned so far */
	bool failed; /* before the request was submitted */
	qwen_wire_error error;
	ExprContext *econtext;
} Stream;

static Stream *start(FunctionCallInfo fcinfo);
static void stop(Datum arg);
static void finish(Stream *stream);
static text *next_piece(FunctionCallInfo fcinfo, Stream *stream, bool *done);
static text *fail(FunctionCallInfo fcinfo, Stream *stream, bool *done);
static Datum make_row(FuncCallContext *funcctx, int seq, text *piece, bool done);

PG_FUNCTION_INFO_V1(qwen_stream);

Datum
qwen_stream(PG_FUNCTION_ARGS)
{
	FuncCallContext *funcctx;
	Stream *stream;
	text *piece;
	bool done;

	if (SRF_IS_FIRSTCALL())
	{
		MemoryContext old;
		TupleDesc descriptor;

		funcctx = SRF_FIRSTCALL_INIT();
		old = MemoryContextSwitchTo(funcctx->multi_call_memory_ctx);
		if (get_call_result_type(fcinfo, NULL, &descriptor) != TYPEFUNC_COMPOSITE)
			elog(ERROR, "qwen_stream must return rows");
		funcctx->tuple_desc = BlessTupleDesc(descriptor);
		funcctx->user_fctx = PG_ARGISNULL(QWEN_ARG_SUBJECT) ? NULL : start(fcinfo);
		MemoryContextSwitchTo(old);
	}

	funcctx = SRF_PERCALL_SETUP();
	stream = funcctx->user_fctx;
	if (stream == NULL)
		SRF_RETURN_DONE(funcctx);

	piece = next_piece(fcinfo, stream, &done);
	if (done)
		funcctx->user_fctx = NULL;
	SRF_RETURN_NEXT(funcctx, make_row(funcctx, ++stream->seq, piece, done));
}

static Stream *
start(FunctionCallInfo fcinfo)
{
	ReturnSetInfo *rsi = (ReturnSetInfo *) fcinfo->resultinfo;
	text *prompt = PG_GETARG_TEXT_PP(QWEN_ARG_SUBJECT);
	Stream *stream = palloc0(sizeof(Stream));
	QwenOptions options;
	StringInfoData request;

	qwen_read_options(fcinfo, QWEN_KIND_GENERATE, 0, &options);
	options.head.flags |= QWEN_FLAG_STREAM;
	stream->on_error = options.on_error;
	stream->econtext = rsi->econtext;

	qwen_request_begin(&request, &options);
	if (qwen_request_add_text(&request, QWEN_FIELD_PROMPT, VARDATA_ANY(prompt), VARSIZE_ANY_EXHDR(prompt),
							  &stream->error))
		stream->call = qwen_submit(&request, false, &stream->error);
	stream->failed = stream->call == NULL;
	pfree(request.data);
	if (!stream->failed)
		RegisterExprContextCallback(stream->econtext, stop, PointerGetDatum(stream));
	return stream;
}

/* Nobody wants the rest. */
static void
stop(Datum arg)
{
	Stream *stream = (Stream *) DatumGetPointer(arg);

	qwen_call_release(stream->call);
	stream->call = NULL;
}

static void
finish(Stream *stream)
{
	UnregisterExprContextCallback(stream->econtext, stop, PointerGetDatum(stream));
	stop(PointerGetDatum(stream));
}

/* The text of the next row; an empty one, or NULL after a failure, at the end. */
static text *
next_piece(FunctionCallInfo fcinfo, Stream *stream, bool *done)
{
	QwenReply reply;
	char *string;
	Size length;

	if (stream->failed)
		return fail(fcinfo, stream, done);

	qwen_call_next(stream->call, &reply);
	if (reply.type == QWEN_FRAME_ERROR)
	{
		finish(stream);
		qwen_raise_unless_row_level(&reply.error);
		stream->error = reply.error;
		return fail(fcinfo, stream, done);
	}
	*done = reply.type == QWEN_FRAME_DONE;
	if (*done)
	{
		finish(stream);
		return cstring_to_text("");
	}

	string = qwen_to_server(unconstify(char *, reply.data), reply.length, &length, &stream->error);
	if (string == NULL)
	{
		finish(stream);
		return fail(fcinfo, stream, done);
	}
	return cstring_to_text_with_len(string, (int) length);
}

static text *
fail(FunctionCallInfo fcinfo, Stream *stream, bool *done)
{
	qwen_fail_row(fcinfo, stream->on_error, &stream->error);
	*done = true;
	return NULL;
}

static Datum
make_row(FuncCallContext *funcctx, int seq, text *piece, bool done)
{
	Datum columns[3] = {Int32GetDatum(seq), PointerGetDatum(piece), BoolGetDatum(done)};
	bool nulls[3] = {false, piece == NULL, false};

	return HeapTupleGetDatum(heap_form_tuple(funcctx->tuple_desc, columns, nulls));
}
