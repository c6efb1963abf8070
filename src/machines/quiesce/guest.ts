// The guest of a machine: its file systems are frozen for an instant, by commands or by QEMU's guest agent, and thawed whatever comes of it;
// and what it wants done before and after its disks are checkpointed, backed up or snapshotted.
//
// That it may be frozen is in the state folder before it is asked to freeze, and until it has said that it thaws. So it is thawed after a
// failure halfway, after a thaw that failed (again and again), and by the next daemon when this one ends in between.

import { setTimeout as sleep } from 'node:timers/promises'
import { isDeepStrictEqual } from 'node:util'
import { z } from 'zod'
import { Fault, InvalidParameter, messageOf } from '../../base/errors.ts'
import type { Emit } from '../../base/events.ts'
import type { Log } from '../../base/log.ts'
import type { MachineSettings, QuiesceSettings } from '../../settings/settings.ts'
import type { StateFolder } from '../state-folder.ts'
import { AgentFailed, askAgent } from './guest-agent.ts'
import { runCommand } from './run-command.ts'

/** The guest could not be frozen, or could not be for certain. */
export class NotQuiesced extends Fault {}

/** Whether the guest's file systems were quiet at an instant. */
export type Consistency = 'crash' | 'quiesced'

/** What is done with the disks, for the commands of the configuration. */
export interface Operation {
  readonly kind: 'checkpoint' | 'pull' | 'push' | 'snapshot' | 'start'
  /** The checkpoint's or the session's. */
  readonly name?: string | undefined
  readonly repository?: string | undefined
}

/** What came of it. */
export interface Outcome {
  readonly result: 'done' | 'failed'
  readonly reason?: string | undefined
  readonly consistency?: Consistency | undefined
  readonly checkpoint?: string | undefined
  /** The restore point. */
  readonly point?: string | undefined
}

export interface Quiescing {
  readonly operation: Operation
  /** True: frozen, or nothing is done; false: not frozen; undefined: as the configuration says. */
  readonly wanted?: boolean | undefined
}

const record = z.strictObject({ since: z.string(), operation: z.string() })

/** Between one try to thaw and the next; then as the last, until it has worked. */
const RETRY_MS = [1000, 2000, 5000, 10_000, 30_000]
/** What is still running when the daemon ends: so long it is waited for. */
const END_MS = 10_000

export class Guest implements AsyncDisposable {
  #stuck: { readonly since: string; reason: string } | undefined
  #retrying: { readonly stop: AbortController; readonly done: Promise<void> } | undefined
  readonly #running = new Set<Promise<void>>()

  private constructor(
    private readonly machine: string,
    private settings: MachineSettings,
    private readonly state: StateFolder,
    private readonly log: Log,
    private readonly emit: Emit,
  ) {}

  static async open(machine: string, settings: MachineSettings, state: StateFolder, log: Log, emit: Emit): Promise<Guest> {
    const guest = new Guest(machine, settings, state, log, emit)
    const left = await state.read(fileOf(machine), record)
    if (left) guest.#stuck = { since: left.since, reason: 'the daemon ended while the guest was frozen' }
    return guest
  }

  /** Since when it has been frozen without our wanting it, and why. */
  get stuck(): { readonly since: string; readonly reason: string } | undefined {
    return this.#stuck
  }

  /** True when that changes anything. */
  reconfigure(settings: MachineSettings): boolean {
    const before = this.settings
    this.settings = settings
    return !isDeepStrictEqual([before.quiesce, before.hooks], [settings.quiesce, settings.hooks])
  }

  /** Once its disks can be reached: a guest that an earlier daemon has frozen is thawed. Does not wait for it. */
  recover() {
    if (!this.#stuck) return
    this.log.warn('the guest may be frozen still, and is thawed', { machine: this.machine, since: this.#stuck.since })
    this.#retry({ kind: 'start' }, 0)
  }

  /** @throws InvalidParameter when it is to be frozen, and nobody knows how */
  check(wanted: boolean | undefined) {
    if (wanted && !this.settings.quiesce) throw this.#unknown()
  }

  /**
   * Calls `moment` while the guest is frozen, where it is to be, and thaws it as soon as that is done or has failed.
   * @throws NotQuiesced when it cannot be frozen; `moment` was not called then
   */
  async frozen({ operation, wanted }: Quiescing, moment: () => Promise<void>): Promise<Consistency> {
    const { quiesce } = this.settings
    this.check(wanted)
    if (!quiesce || wanted === false) {
      await moment()
      return 'crash'
    }
    try {
      await this.#ready(operation)
      await this.state.write(fileOf(this.machine), { since: new Date().toISOString(), operation: operation.kind })
      try {
        await this.#freeze(quiesce, operation)
        await moment()
        return 'quiesced'
      } finally {
        await this.#thawed(operation)
      }
    } catch (error) {
      if (!(error instanceof NotQuiesced) || wanted || quiesce.onFailure === 'fail') throw error
      this.log.warn('the guest could not be frozen; what is made is as after a power cut', { machine: this.machine, err: error })
      this.emit('MACHINE_NOT_QUIESCED', { machine: this.machine, reason: error.message })
    }
    await moment()
    return 'crash'
  }

  /** By hand. @throws Fault when it does not thaw */
  async thaw() {
    if (!this.settings.quiesce) throw this.#unknown()
    await this.#stopRetrying()
    this.#stuck ??= { since: new Date().toISOString(), reason: 'thawed by hand' }
    try {
      await this.#thaw({ kind: 'start' })
    } catch (error) {
      this.#retry({ kind: 'start' })
      throw error
    }
  }

  /** @throws CommandFailed when the machine does not want it now */
  async before(operation: Operation) {
    const { hooks } = this.settings
    if (!hooks?.before) return
    await runCommand({
      what: `the command before, of machine '${this.machine}',`,
      command: hooks.before,
      env: this.#env('before', operation),
      timeoutMs: hooks.timeoutMs,
    })
  }

  /** Done when the command is. Never throws: what is done is done. */
  async after(operation: Operation, outcome: Outcome) {
    this.ended(operation, outcome)
    await Promise.all(this.#running)
  }

  /** As `after`, for whoever cannot wait: it may take long. */
  ended(operation: Operation, { result, reason, consistency, checkpoint, point }: Outcome) {
    const { hooks } = this.settings
    if (!hooks?.after) return
    const env = this.#env('after', operation, {
      RESULT: result,
      REASON: reason,
      CONSISTENCY: consistency,
      CHECKPOINT: checkpoint,
      POINT: point,
    })
    const what = `the command after, of machine '${this.machine}',`
    const running = runCommand({ what, command: hooks.after, env, timeoutMs: hooks.timeoutMs })
      .catch((error: unknown) => {
        this.log.error('what is to be done afterwards has failed', { machine: this.machine, err: error })
        this.emit('MACHINE_HOOK_FAILED', { machine: this.machine, hook: 'after', reason: messageOf(error) })
      })
      .finally(() => this.#running.delete(running))
    this.#running.add(running)
  }

  /** A guest that is frozen still is tried once more; the next daemon goes on with it. */
  async [Symbol.asyncDispose]() {
    const wasRetrying = this.#retrying !== undefined
    await this.#stopRetrying()
    if (this.#running.size > 0) await Promise.race([Promise.all(this.#running), sleep(END_MS, undefined, { ref: false })])
    if (wasRetrying && this.#stuck) await this.#tryToThaw({ kind: 'start' })
  }

  /** It is not frozen, as far as we know. */
  async #ready(operation: Operation) {
    await this.#stopRetrying()
    if (!this.#stuck || (await this.#tryToThaw(operation))) return
    this.#retry(operation)
    throw new NotQuiesced(
      `the guest of machine '${this.machine}' has been frozen since ${this.#stuck.since}: ${this.#stuck.reason}`,
    )
  }

  async #freeze(quiesce: QuiesceSettings, operation: Operation) {
    try {
      if ('agent' in quiesce) await askAgent(quiesce.agent, 'guest-fsfreeze-freeze', quiesce.timeoutMs)
      else {
        await runCommand({
          what: `the freeze command of machine '${this.machine}'`,
          command: quiesce.freeze,
          env: this.#env('freeze', operation),
          timeoutMs: quiesce.timeoutMs,
        })
      }
    } catch (error) {
      if (!(error instanceof Fault)) throw error
      throw new NotQuiesced(
        `the guest of machine '${this.machine}' could not be frozen: ${error.message}; mend that, or say --no-quiesce to do without`,
        { cause: error },
      )
    }
  }

  /** Whatever came of the freeze. What does not thaw is tried again in the background. */
  async #thawed(operation: Operation) {
    this.#stuck = { since: new Date().toISOString(), reason: 'it is not thawed yet' }
    if (!(await this.#tryToThaw(operation))) this.#retry(operation)
  }

  async #tryToThaw(operation: Operation): Promise<boolean> {
    try {
      await this.#thaw(operation)
      return true
    } catch (error) {
      const reason = messageOf(error)
      if (this.#stuck) this.#stuck.reason = reason
      this.log.error('a guest could not be thawed, which is tried again', { machine: this.machine, err: error })
      this.emit('MACHINE_NOT_THAWED', { machine: this.machine, reason })
      return false
    }
  }

  async #thaw(operation: Operation) {
    const { quiesce } = this.settings
    if (!quiesce) throw this.#unknown()
    if ('agent' in quiesce) {
      await askAgent(quiesce.agent, 'guest-fsfreeze-thaw', quiesce.timeoutMs)
      const status = await askAgent(quiesce.agent, 'guest-fsfreeze-status', quiesce.timeoutMs)
      if (status !== 'thawed') throw new AgentFailed(`the guest agent says that the guest is ${JSON.stringify(status)}`)
    } else {
      await runCommand({
        what: `the thaw command of machine '${this.machine}'`,
        command: quiesce.thaw,
        env: this.#env('thaw', operation),
        timeoutMs: quiesce.timeoutMs,
      })
    }
    await this.state.remove(fileOf(this.machine))
    this.#stuck = undefined
  }

  #retry(operation: Operation, firstMs = RETRY_MS[0]!) {
    const stop = new AbortController()
    const again = async () => {
      for (let count = 0; !stop.signal.aborted; count++) {
        const ms = count === 0 ? firstMs : RETRY_MS[Math.min(count, RETRY_MS.length - 1)]!
        if (ms > 0 && !(await slept(ms, stop.signal))) return
        if (await this.#tryToThaw(operation)) {
          this.log.info('a guest is thawed', { machine: this.machine })
          return this.emit('MACHINE_THAWED', { machine: this.machine })
        }
      }
    }
    const done = again().finally(() => {
      if (this.#retrying?.stop === stop) this.#retrying = undefined
    })
    this.#retrying = { stop, done }
  }

  async #stopRetrying() {
    const retrying = this.#retrying
    retrying?.stop.abort()
    await retrying?.done
  }

  #env(hook: string, { kind, name, repository }: Operation, more: Readonly<Record<string, string | undefined>> = {}) {
    const all = {
      HOOK: hook,
      MACHINE: this.machine,
      DISKS: Object.keys(this.settings.disks).join(' '),
      OPERATION: kind,
      NAME: name,
      REPOSITORY: repository,
      ...more,
    }
    return Object.fromEntries(
      Object.entries(all).flatMap(([key, value]) => (value === undefined ? [] : [[`STILLPOINT_${key}`, value]])),
    )
  }

  #unknown() {
    return new InvalidParameter(
      `the configuration does not say how the guest of machine '${this.machine}' is frozen; give the machine a 'quiesce' there, or do without --quiesce`,
    )
  }
}

/** False when it was woken. */
async function slept(ms: number, signal: AbortSignal): Promise<boolean> {
  try {
    await sleep(ms, undefined, { signal, ref: false })
    return true
  } catch (error) {
    if (signal.aborted) return false
    throw error
  }
}

const fileOf = (machine: string) => `frozen-${machine}`
