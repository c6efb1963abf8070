// Parts of one request that go on at the same time. All have ended before the request does, also when one of them fails: buffers are in use.

export class Tasks {
  #running: Promise<void>[] = []
  #failure: { readonly error: unknown } | undefined

  add(task: Promise<unknown>) {
    this.#running.push(
      task.then(
        () => undefined,
        (error: unknown) => {
          this.#failure ??= { error }
        },
      ),
    )
  }

  get failed() {
    return this.#failure !== undefined
  }

  get count() {
    return this.#running.length
  }

  /** Waits for all, then throws what the first one to fail threw. */
  async ended() {
    while (this.#running.length > 0) await Promise.all(this.#running.splice(0))
    if (this.#failure) throw this.#failure.error as Error
  }
}
