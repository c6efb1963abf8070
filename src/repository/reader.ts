// A reading session: while it is there, nothing that its restore points need is deleted, also when they are forgotten meanwhile.
//
// It says which restore points it pins and only then looks whether they are (still) there. So whoever forgets one later does so when
// the session is there to be seen, and the collector, which lists restore points before it lists sessions, sees one of the two.
//
// Whoever was silent for so long that it was taken for dead pins and looks again. Where a restore point was forgotten meanwhile the session
// ends, and every read with it: SessionExpired. That is found out at the next beat, or when something is gone.

import { NoSpace } from '../base/errors.ts'
import { contentOf } from './attachment.ts'
import { BlobType } from './blob.ts'
import { NodeReader, PackSessions } from './node-reader.ts'
import { readState } from './gc-state.ts'
import { loadIndex, type RepositoryIndex } from './repository-index.ts'
import type { Point, Repository } from './repository.ts'
import type { SessionRecord } from './session-record.ts'
import { Session, type SessionOptions } from './session.ts'
import { Denied, Unavailable } from './target.ts'

export class RepositoryReader implements AsyncDisposable {
  readonly nodes: NodeReader
  readonly sessions: PackSessions

  private constructor(
    readonly repository: Repository,
    readonly session: Session,
    readonly points: readonly Point[],
    readonly index: RepositoryIndex,
  ) {
    const { target, keys, id } = repository
    this.sessions = new PackSessions(target, keys, id, session.signal)
    this.nodes = new NodeReader(target, keys, index, this.sessions, session.signal)
  }

  /** NotFound when one of the restore points is not there. */
  static async begin(
    repository: Repository,
    keys: readonly string[],
    { beatMs, signal }: Pick<SessionOptions, 'beatMs' | 'signal'> = {},
  ) {
    const { target, cas } = repository
    const { state } = await readState(target, signal)
    const points = await Promise.all(keys.map(key => repository.point(key, signal)))
    const pins = points.map(({ key, body }) => ({ key, manifest: body.toString('base64') }))
    const stillThere = async () => {
      for (const key of keys) await repository.point(key, signal)
    }
    await using undo = new AsyncDisposableStack()
    const record = { kind: 'reader', epoch: state.epoch, pins } as const
    const options = { cas, signal, renewed: stillThere, ...(beatMs !== undefined && { beatMs }) }
    const session = undo.use(await pinned(repository, record, options))
    await stillThere()
    const { index } = await loadIndex(target, repository.id, { forReading: true, signal })
    index.reload = async () => {
      await session.beat()
      return (await loadIndex(target, repository.id, { forReading: true, signal: session.signal })).index
    }
    undo.move()
    return new RepositoryReader(repository, session, points, index)
  }

  get signal() {
    return this.session.signal
  }

  /** The bytes of an attachment, by its id in hex. */
  async attachment(id: string): Promise<Buffer> {
    return contentOf(await this.nodes.blob(Buffer.from(id, 'hex'), BlobType.attachment))
  }

  async [Symbol.asyncDispose]() {
    await this.session[Symbol.asyncDispose]()
  }
}

/** A full disk, a read-only one, a key that may only read, or a store that is hard to reach and yet can be read, are no reason to keep from anybody what they have backed up. */
async function pinned(
  { target, warn }: Repository,
  record: Pick<SessionRecord, 'kind' | 'epoch' | 'pins'>,
  options: SessionOptions,
): Promise<Session> {
  try {
    return await Session.begin(target, record, options)
  } catch (error) {
    if (!(error instanceof NoSpace || error instanceof Denied || error instanceof Unavailable)) throw error
    warn(
      `nobody can be told there that this reads from the repository, so nobody is to collect in it until it is over: ${error.message}`,
    )
    return Session.unrecorded(target, record, options)
  }
}
