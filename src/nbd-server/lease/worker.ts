// The thread that connections are lent to, one at a time (lender.ts).

import { parentPort } from 'node:worker_threads'
import { threadCalls } from '../../base/thread-calls.ts'
import { Server } from './serve.ts'
import type { Lent } from './terms.ts'

const calls = await threadCalls()
const server = calls && Server.make(calls)
if (server) parentPort!.on('message', (lent: Lent) => parentPort!.postMessage(server.serve(lent)))
/** Whether it can be lent one at all; else it ends. */
parentPort!.postMessage(server !== undefined)
