// One change of a transaction: a bitmap verb, a snapshot, the start of a job.

/**
 * `prepare` may wait and fail, and only reserves: nobody outside of the transaction sees a change, and what the change needs cannot be
 * taken away any more. Then, with all nodes drained, every commit runs in list order in one turn of the event loop; none of them can
 * fail. `abort` undoes a successful prepare; the actions are aborted in reverse order.
 *
 * What a start after a crash has to know of beforehand is written down when all are prepared, with writes going on (`announce`). It may fail, and
 * then nothing is committed, and `abort` takes it back.
 *
 * What the instant would wait for although no guest's write is the reason is waited for before, with writes going on (`approach`); where there is
 * something again when writes are held (`isHeldUp`), they are let go, and it is tried once more.
 *
 * What takes longer and has to be done at that very moment is done right before the commits (`atInstant`), with writes held: it may wait and fail,
 * and then nothing is committed, and `abort` undoes it too; what must be undone before anybody writes again, `undoInstant` undoes first.
 *
 * What has happened then becomes durable, before anybody is told of it, with writes going on: first what was taken over from elsewhere
 * (`secure`), then everything (`settle`). These may wait, and may fail; what has happened stays all the same.
 */
export interface Action {
  /** `transaction` stands for who prepares: what one action has reserved, later ones of the same transaction may use, and nobody else. */
  prepare(transaction: object): Promise<void> | void
  announce?(): Promise<void> | undefined
  approach?(): Promise<void>
  isHeldUp?(): boolean
  /** `signal`: it has taken too long. What is done after that must be undone at once. */
  atInstant?(signal: AbortSignal): Promise<void>
  undoInstant?(): Promise<void>
  commit(): void
  secure?(): Promise<void> | undefined
  settle?(): Promise<void> | undefined
  abort(): Promise<void> | void
}
