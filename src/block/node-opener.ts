// Opens a node with all that is below it: the driver and the children that its options name, in QMP's words (blockdev-add).
//
// A child is the name of a node that is there, or the options of one to be opened for it. A child that the options leave out may be
// named by the image itself (a backing file). Whatever fails, nothing of it stays open.

import { Fault, InvalidParameter, NotFound, ReadOnly } from '../base/errors.ts'
import { checked } from '../base/checked.ts'
import type { LogFolder } from '../bitmaps/activity-log.ts'
import type { AnyDriver, ChildRule, NodeEvent, NodeOptions, OpenContext } from './driver.ts'
import { Edge } from './edge.ts'
import { GraphNode, type Opening } from './graph-node.ts'
import { checkNodeName, genericNames, genericOptions, type GenericOptions } from './node-options.ts'
import type { Objects } from './objects.ts'
import { childPermissions, planPermissions } from './permission-update.ts'
import { ALL, Permission } from './permissions.ts'

/** A chain of images that is longer is most likely a circle. */
const MAX_DEPTH = 200

/** What a child that is written inside another's options takes over where it says nothing itself (QEMU's bdrv_inherited_options). */
interface Inherited {
  readonly 'read-only': boolean
  readonly 'auto-read-only': boolean
  readonly cache: GenericOptions['cache']
  readonly discard: GenericOptions['discard']
  readonly 'force-share': boolean
}

/** Whether it names or describes one. `null`, and for what is behind an image an empty name too, say that there is none. */
const isNode = ({ role }: ChildRule, value: unknown) =>
  value !== undefined && value !== null && !(value === '' && role === 'backing')

export class NodeOpener {
  readonly #drivers: Map<string, AnyDriver>
  readonly #opening = new Set<string>()
  #anonymous = 0

  constructor(
    drivers: readonly AnyDriver[],
    private readonly otherDrivers: (() => Promise<readonly AnyDriver[]>) | undefined,
    private readonly nodes: Map<string, GraphNode>,
    private readonly objects: Objects,
    private readonly closeOrphan: (node: GraphNode) => Promise<void>,
    /** Also of what a node reports while it is being opened. */
    private readonly report: (nodeName: string, event: NodeEvent) => void,
    /** For the activity logs of nodes that keep bitmaps. */
    private readonly logs: LogFolder | undefined,
  ) {
    this.#drivers = new Map(drivers.map(driver => [driver.name, driver]))
  }

  async open(
    options: NodeOptions,
    given?: AnyDriver,
    inherited?: Inherited,
    { depth = 0, loadBitmaps = true }: { readonly depth?: number; readonly loadBitmaps?: boolean } = {},
  ): Promise<GraphNode> {
    if (depth > MAX_DEPTH)
      throw new InvalidParameter(`more than ${MAX_DEPTH} images are stacked here; look for a circle among the backing files`)
    const driver = given ?? this.#drivers.get(options.driver) ?? (await this.#otherDriver(options.driver))
    if (!driver) throw new InvalidParameter(`Unknown driver '${options.driver}'`)
    const { generic, children, own } = split(driver, { ...inherited, ...options })
    if (generic['force-share'] && !generic['read-only'])
      throw new InvalidParameter('force-share=on can only be used with read-only images')
    const name = generic['node-name'] ?? `#block${String(++this.#anonymous).padStart(3, '0')}`
    if (generic['node-name'] !== undefined) checkNodeName(name)
    if (this.nodes.has(name) || this.#opening.has(name)) throw new InvalidParameter(`Duplicate nodes with node-name='${name}'`)
    this.#opening.add(name)
    try {
      await using below = new Below(name, this.closeOrphan)
      await this.#openChildren(below, driver, children, own, generic, depth)
      const node = await this.#openNode(name, driver, own, generic, options, below.edges)
      if (loadBitmaps) await this.#loadBitmaps(node)
      below.keep(node)
      this.nodes.set(name, node)
      return node
    } finally {
      this.#opening.delete(name)
    }
  }

  async #otherDriver(name: string): Promise<AnyDriver | undefined> {
    for (const driver of (await this.otherDrivers?.()) ?? []) this.#drivers.set(driver.name, driver)
    return this.#drivers.get(name)
  }

  async #openChildren(
    below: Below,
    driver: AnyDriver,
    given: Readonly<Record<string, unknown>>,
    own: unknown,
    generic: GenericOptions,
    depth: number,
  ) {
    const open = async (childName: string, value: unknown) => {
      const rule = driver.children[childName]!
      const node = await this.#child(rule, value, generic, depth).catch((error: unknown) => {
        throw rule.role === 'backing' ? ofBacking(error) : error
      })
      below.add(childName, node, rule, isReadOnly(driver, generic, new Map([[childName, node]])), own)
      if (!generic['read-only'] && rule.role === 'data') checkWritable(node, rule, own)
    }
    const wanted = Object.keys(driver.children)
    for (const childName of wanted)
      if (isNode(driver.children[childName]!, given[childName])) await open(childName, given[childName])
    const left = wanted.filter(childName => given[childName] === undefined)
    if (driver.implicitChildren && left.length > 0) {
      const context = { nodeName: below.name, children: Object.fromEntries(below.edges), filenames: filenamesOf(below.edges) }
      const named = await driver.implicitChildren(own, context)
      for (const childName of left) if (named[childName]) await open(childName, named[childName])
    }
    for (const childName of wanted) {
      if (!below.edges.has(childName) && !driver.children[childName]!.optional)
        throw new InvalidParameter(`A block device must be specified for "${childName}"`)
    }
  }

  async #child(rule: ChildRule, value: unknown, generic: GenericOptions, depth: number): Promise<GraphNode> {
    if (typeof value === 'string') {
      const node = this.nodes.get(value)
      if (!node) throw new NotFound(`Cannot find device='${value}' nor node-name='${value}'`)
      return node
    }
    const { cache, 'read-only': readOnly, 'auto-read-only': autoReadOnly, 'force-share': forceShare } = generic
    const inherited: Inherited = {
      cache,
      'read-only': rule.role === 'backing' || readOnly,
      'auto-read-only': rule.role !== 'backing' && autoReadOnly,
      discard: rule.role === 'data' ? 'unmap' : generic.discard,
      'force-share': forceShare,
    }
    return this.open(value as NodeOptions, undefined, inherited, { depth: depth + 1, loadBitmaps: !rule.keepsBitmaps })
  }

  async #loadBitmaps(node: GraphNode) {
    try {
      await node.loadBitmaps(this.logs)
    } catch (error) {
      await node.dispose()
      throw error
    }
  }

  async #openNode(
    name: string,
    driver: AnyDriver,
    own: unknown,
    generic: GenericOptions,
    options: NodeOptions,
    children: ReadonlyMap<string, Edge>,
  ): Promise<GraphNode> {
    let opened: GraphNode | undefined
    const report = (event: NodeEvent) => {
      opened?.report(event)
      this.report(name, event)
    }
    using uses = new DisposableStack()
    const attempt = async (readOnly: boolean) => {
      const context: OpenContext = {
        nodeName: name,
        readOnly,
        unmap: generic.discard === 'unmap',
        cache: { direct: generic.cache.direct, noFlush: generic.cache['no-flush'] },
        children: Object.fromEntries(children),
        filenames: filenamesOf(children),
        below: childName => children.get(childName)!.node,
        find: nodeName => this.nodes.get(nodeName),
        object: id => this.#object(uses, id, name),
        lookUp: id => this.objects.find(id),
        bitmap: (nodeName, bitmap) => this.#bitmap(nodeName, bitmap),
        report,
      }
      const node = await driver.open(own, context)
      return new GraphNode({ name, driver, node, readOnly, generic, options, children, uses: uses.move(), report })
    }
    const readOnly = isReadOnly(driver, generic, new Map([...children].map(([childName, { node }]) => [childName, node])))
    try {
      opened = await attempt(readOnly)
    } catch (error) {
      if (readOnly || !generic['auto-read-only'] || !(error instanceof ReadOnly)) throw error
      opened = await attempt(true)
    }
    return opened
  }

  /** Another node of the driver over the same children, for one that is to be open in another way. */
  async openAgain(node: GraphNode, own: unknown, { generic, readOnly }: Opening) {
    using uses = new DisposableStack()
    const opened = await node.driver.open(own, {
      nodeName: node.name,
      readOnly,
      unmap: generic.discard === 'unmap',
      cache: { direct: generic.cache.direct, noFlush: generic.cache['no-flush'] },
      children: Object.fromEntries(node.children),
      filenames: filenamesOf(node.children),
      below: childName => node.children.get(childName)!.node,
      find: nodeName => this.nodes.get(nodeName),
      object: id => this.#object(uses, id, node.name),
      lookUp: id => this.objects.find(id),
      bitmap: (nodeName, bitmap) => this.#bitmap(nodeName, bitmap),
      report: event => {
        node.report(event)
        this.report(node.name, event)
      },
    })
    return { node: opened, uses: uses.move() }
  }

  #object(uses: DisposableStack, id: string, user: string) {
    uses.use(this.objects.use(id, user))
    return this.objects.find(id)
  }

  /** What copy-before-write is to keep; refused in QEMU's words. */
  #bitmap(nodeName: string, bitmap: string) {
    const node = this.nodes.get(nodeName)
    if (!node) throw new NotFound(`Node '${nodeName}' not found`)
    const found = node.bitmaps.get(bitmap)
    if (!found.inconsistent) return found
    const why = `Bitmap '${bitmap}' is inconsistent and cannot be used`
    throw new InvalidParameter(
      `Cannot create block-copy-state: Failed to merge bitmap '${bitmap}' to internal copy-bitmap: ${why}`,
    )
  }
}

const NO_BACKING = 'Could not open backing file: '

/** QEMU says so first, and for each image of the chain; once is enough. */
const ofBacking = (error: unknown) =>
  error instanceof Fault && !error.message.startsWith(NO_BACKING)
    ? new InvalidParameter(`${NO_BACKING}${error.message}`, { cause: error })
    : error

/** Also where the data below cannot be written. */
const isReadOnly = (driver: AnyDriver, generic: GenericOptions, children: ReadonlyMap<string, GraphNode>) =>
  generic['read-only'] ||
  [...children].some(([childName, node]) => ['data', 'filtered'].includes(driver.children[childName]!.role) && node.readOnly)

/**
 * A format writes of its own accord, and what is to be written by it is not opened over what was to be read-only, be it by mistake. (A file that
 * could not be written, `auto-read-only`, is another matter: the image is read-only then as well.)
 */
function checkWritable(child: GraphNode, rule: ChildRule, options: unknown) {
  const { perm } = childPermissions(rule, { perm: 0, shared: ALL }, false, options, child)
  if (child.generic['read-only'] && perm & Permission.write) throw new ReadOnly('Block node is read-only')
}

/** The children while their parent is being opened: let go of again unless it is kept. */
class Below implements AsyncDisposable {
  readonly edges = new Map<string, Edge>()
  #kept = false

  constructor(
    readonly name: string,
    private readonly closeOrphan: (node: GraphNode) => Promise<void>,
  ) {}

  /** What the driver may do while it opens is what it may do while nobody uses its node. */
  add(childName: string, node: GraphNode, rule: ChildRule, readOnly: boolean, options: unknown) {
    const edge = new Edge({ description: `node '${this.name}'`, childName }, node)
    this.edges.set(childName, edge)
    const asked = childPermissions(rule, { perm: 0, shared: ALL }, readOnly, options, node)
    planPermissions({ moved: new Map(), asked: new Map([[edge, asked]]) }).commit()
  }

  keep(node: GraphNode) {
    for (const edge of this.edges.values()) edge.parent.node = node
    this.#kept = true
  }

  async [Symbol.asyncDispose]() {
    if (this.#kept) return
    for (const edge of this.edges.values()) {
      planPermissions({ moved: new Map([[edge, undefined]]) }).commit()
      edge.node.parents.delete(edge)
      await this.closeOrphan(edge.node)
    }
  }
}

const filenamesOf = (children: ReadonlyMap<string, Edge>) =>
  Object.fromEntries([...children].map(([childName, edge]) => [childName, edge.node.filename]))

/** The options of every node, the driver's own, and the children. @throws InvalidParameter */
export function split(driver: AnyDriver, options: NodeOptions) {
  const generic = checked(genericOptions, options)
  if (generic['detect-zeroes'] === 'unmap' && generic.discard !== 'unmap')
    throw new InvalidParameter('setting detect-zeroes to unmap is not allowed without setting discard operation to unmap')
  const rest = Object.entries(options).filter(([name]) => !genericNames.has(name))
  const isChild = ([name]: [string, unknown]) => name in driver.children
  const own: unknown = checked(driver.options, Object.fromEntries(rest.filter(entry => !isChild(entry))))
  return { generic, own, children: Object.fromEntries(rest.filter(isChild)) }
}
