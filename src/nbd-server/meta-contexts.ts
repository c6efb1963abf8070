// Which of an export's metadata contexts a client's queries mean.

import { MAX_STRING } from 'nbd-client-ts/protocol'
import type { Context } from './context.ts'
import type { OptionData } from './option-data.ts'

/** A context that a client has chosen, with the number its replies carry. */
export interface SelectedContext {
  readonly id: number
  readonly context: Context
}

/** The queries of LIST_META_CONTEXT or SET_META_CONTEXT, to the end of the data. */
export function readQueries(data: OptionData): readonly string[] {
  const queries: string[] = []
  for (let count = data.u32(); count > 0; count--) {
    const query = data.counted('a query')
    // latin1 keeps different bytes different; our names are ASCII but for those of bitmaps, which are compared as bytes as well.
    if (query.length <= MAX_STRING) queries.push(query.toString('latin1'))
  }
  data.end()
  return queries
}

const onWire = ({ name }: Context) => Buffer.from(name).toString('latin1')

/** Each context once, in the export's order. A query that ends in a colon means all that begin so; no query at all means all. */
export function listed(contexts: readonly Context[], queries: readonly string[]): readonly Context[] {
  return contexts.filter(
    context =>
      queries.length === 0 ||
      queries.some(query => query === onWire(context) || (query.endsWith(':') && onWire(context).startsWith(query))),
  )
}

/** Only whole names select. */
export function selected(contexts: readonly Context[], queries: readonly string[]): readonly SelectedContext[] {
  return contexts.map((context, id) => ({ id, context })).filter(({ context }) => queries.includes(onWire(context)))
}
