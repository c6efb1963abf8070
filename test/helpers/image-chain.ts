// Opens images by name, with what they name behind them, as the graph does; for tests that need no graph.

import type { BlockIo, BlockNode, NodeOptions, OpenContext } from '../../src/block/driver.ts'
import { drivers } from '../../src/drivers/index.ts'
import { openContext } from './open-context.ts'

export interface ChainOptions {
  readonly readOnly?: boolean
  readonly unmap?: boolean
  readonly report?: OpenContext['report']
  /** The driver's own options, or a child by name: a node, options to open one by, null for none. */
  readonly options?: Record<string, unknown>
}

/** The node and all below it are closed with the stack. Backing files are opened read-only. */
export async function openImage<Node extends BlockNode = BlockNode>(
  filename: string,
  stack: AsyncDisposableStack,
  { options = {}, ...rest }: ChainOptions & { readonly format?: string } = {},
): Promise<Node> {
  const driver = rest.format ?? 'qcow2'
  return (await openNode({ driver, file: { driver: 'file', filename }, ...options }, stack, rest)) as Node
}

export async function openNode(
  said: NodeOptions,
  stack: AsyncDisposableStack,
  rest: Omit<ChainOptions, 'options'> = {},
): Promise<BlockNode> {
  const driver = drivers.find(({ name }) => name === said.driver)
  if (!driver) throw new Error(`no driver '${said.driver}'`)
  const children: Record<string, BlockIo> = {}
  const filenames: Record<string, string | undefined> = {}
  const own: Record<string, unknown> = {}
  const openChild = async (name: string, child: unknown) => {
    if (child === null) return
    const readOnly = name === 'backing' ? true : rest.readOnly
    const node = isNode(child) ? child : await openNode(child as NodeOptions, stack, { ...rest, readOnly })
    children[name] = node
    filenames[name] = node.filename
  }
  for (const [name, value] of Object.entries(said)) {
    if (name in driver.children) await openChild(name, value)
    else if (name !== 'driver') own[name] = value
  }
  const options: unknown = driver.options.parse(own)
  const implicit = (await driver.implicitChildren?.(options, { nodeName: 'node', children, filenames })) ?? {}
  for (const [name, value] of Object.entries(implicit)) if (!(name in said)) await openChild(name, value)
  const { readOnly = false, unmap = true } = rest
  const context = openContext({ readOnly, unmap, children, ...(rest.report && { report: rest.report }) })
  return stack.use(await driver.open(options, context))
}

const isNode = (child: unknown): child is BlockNode => typeof (child as BlockNode).read === 'function'
