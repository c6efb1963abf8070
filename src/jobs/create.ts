// The create job: makes a new image, or a new file (QMP's blockdev-create). It has nothing that it could stop at, and cannot be half done.

import { InvalidParameter } from '../base/errors.ts'
import type { Turns } from '../base/turns.ts'
import type { AnyDriver, NodeOptions } from '../block/driver.ts'
import type { Edge } from '../block/edge.ts'
import type { GraphNode } from '../block/graph-node.ts'
import type { Graph } from '../block/graph.ts'
import { ALL, Permission } from '../block/permissions.ts'
import type { Job, JobWork, Progress } from './job.ts'
import type { Jobs } from './jobs.ts'

export interface CreateContext {
  readonly graph: Graph
  readonly jobs: Jobs
  readonly turns: Turns
}

/** `options` are those of the driver's `creation`, with its files. */
export async function startCreate({ graph, jobs, turns }: CreateContext, id: string, driver: AnyDriver, options: NodeOptions) {
  jobs.create({ id, type: 'create', work: new Create(graph, turns, driver, options), autoDismiss: false }).start()
  await jobs.recorded()
}

class Create implements JobWork {
  readonly #edges: Edge[] = []

  constructor(
    private readonly graph: Graph,
    private readonly turns: Turns,
    private readonly driver: AnyDriver,
    private readonly options: NodeOptions,
  ) {}

  async *run(job: Job): AsyncGenerator<Progress, void, void> {
    const { creation } = this.driver
    if (!creation) return
    yield { current: 0, total: 1 }
    try {
      const { driver: _driver, ...rest } = this.options
      const isFile = ([name]: [string, unknown]) => name in creation.files
      const own: unknown = creation.options.parse(Object.fromEntries(Object.entries(rest).filter(entry => !isFile(entry))))
      const files: Record<string, Edge> = {}
      for (const [name, given] of Object.entries(rest).filter(isFile))
        files[name] = await this.turns.take(() => this.#openFile(given as string | NodeOptions))
      checkApart(files)
      const filenames = Object.fromEntries(Object.entries(files).map(([name, edge]) => [name, edge.node.filename]))
      await creation.create(own, files, filenames, id => this.graph.objects.find(id))
    } finally {
      job.progress = { current: 1, total: 1 }
    }
  }

  async clean() {
    for (const edge of this.#edges) await this.graph.detach(edge)
  }

  /** A node that is opened for this alone goes with its edge. */
  async #openFile(given: string | NodeOptions): Promise<Edge> {
    const isThere = typeof given === 'string'
    const node = isThere ? this.graph.get(given) : await this.graph.open({ discard: 'unmap', ...given })
    try {
      const edge = this.graph.attach(node, {
        description: 'an unnamed block device',
        perm: Permission.consistentRead | Permission.write | Permission.resize,
        shared: ALL,
      })
      this.#edges.push(edge)
      node.owned = isThere && node.owned
      return edge
    } catch (error) {
      if (!isThere) await this.graph.delete(node.name)
      throw error
    }
  }
}

/** What one of them holds would be written over what the other does. */
function checkApart(files: Readonly<Record<string, Edge>>) {
  const names = new Map<GraphNode, string>()
  for (const [name, { node }] of Object.entries(files)) {
    const other = names.get(node)
    if (other !== undefined)
      throw new InvalidParameter(`'${other}' and '${name}' are both node '${node.name}': name another file for one of them`)
    names.set(node, name)
  }
}
