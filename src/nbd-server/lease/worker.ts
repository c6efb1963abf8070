// The thread that connections are lent to, one at a time (lender.ts).

import { parentPort } from 'node:worker_threads'
import { threadCalls } from '../../base/thread-calls.ts'
import { serve } from './serve.ts'
import type { Lent } from './terms.ts'
import { ThreadIo } from './thread-io.ts'

const calls = await threadCalls()
const io = calls && ThreadIo.make(calls)
if (io) parentPort!.on('message', (lent: Lent) => parentPort!.postMessage(serve(lent, io, asks => parentPort!.postMessage(asks))))
/** Whether it can be lent one at all; else it ends. */
parentPort!.postMessage(io !== undefined)
