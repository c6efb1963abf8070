// What comes one after another, each made into something else. An async generator costs several times as much for each, and of extents there may
// be a million.

const END = { done: true, value: undefined } as const

export function mapped<From, To>(from: AsyncIterable<From>, map: (one: From) => To): AsyncIterable<To> {
  const mapResult = (result: IteratorResult<From>): IteratorResult<To> =>
    result.done === true ? END : { done: false, value: map(result.value) }
  return {
    [Symbol.asyncIterator]() {
      const iterator = from[Symbol.asyncIterator]()
      return {
        next: () => iterator.next().then(mapResult),
        async return() {
          await iterator.return?.()
          return END
        },
      }
    },
  }
}
