// Which test is told of an error that nobody caught: loaded before a test file, this takes the place of what tap uses for it.
//
// tap asks the package async-hook-domain, which follows every promise from its making to its collection, so as to know in which test an error
// began. That took half of the processor time of whatever makes many promises. Tests of one file run one after another: the one that runs is told,
// and fails.

import { executionAsyncResource } from 'node:async_hooks'
import { registerHooks } from 'node:module'
import { isMainThread } from 'node:worker_threads'

// Threads of what is tested inherit our options; there is no tap in them.
if (isMainThread)
  registerHooks({
    resolve: (specifier, context, next) =>
      specifier === 'async-hook-domain' ? { url: import.meta.url, shortCircuit: true } : next(specifier, context),
  })

/** From the outermost to the innermost, those of tests that have yet to begin among them. */
const domains = []

function tell(error, origin) {
  if (process.listenerCount('uncaughtException') > 1) return // what is tested sees to it by itself
  domains.findLast(({ test }) => test?.started !== false).tell(error, origin)
}

export class Domain {
  /** Undefined for what is outside of any test. */
  test = executionAsyncResource().test

  constructor(onerror) {
    this.tell = onerror
    if (domains.push(this) === 1) process.on('uncaughtException', tell)
  }

  destroy() {
    const index = domains.indexOf(this)
    if (index < 0) return
    domains.splice(index, 1)
    // From now on an error ends the process, as it would any other.
    if (domains.length === 0) process.off('uncaughtException', tell)
  }
}
