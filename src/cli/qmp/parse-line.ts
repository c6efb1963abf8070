// A line as people write it for `stillpoint qmp`: COMMAND, COMMAND {JSON}, COMMAND key=value ... as with QEMU's qmp-shell, or a whole
// QMP request.

import { messageOf } from '../../base/errors.ts'
import { Misuse } from '../failure.ts'

export interface Line {
  readonly command: string
  readonly args?: object | undefined
  /** Of a whole request that has one. */
  readonly id?: unknown
}

/** Undefined where there is nothing to do: an empty line, or one that begins with #. @throws Misuse */
export function parseLine(text: string): Line | undefined {
  const line = text.trim()
  if (line === '' || line.startsWith('#')) return undefined
  if (line.startsWith('{')) return parseRequest(line)
  const [command = '', ...rest] = line.split(/\s+/, 1)
  const more = line.slice(command.length).trim()
  if (more === '' || rest.length > 0) return { command }
  return { command, args: more.startsWith('{') ? parseArguments(more) : parsePairs(more) }
}

function parseRequest(text: string): Line {
  const { execute, arguments: args, id, ...others } = parseArguments(text) as Record<string, unknown>
  if (typeof execute !== 'string') throw new Misuse('A request needs "execute", as in {"execute": "query-jobs"}')
  const [other] = Object.keys(others)
  if (other !== undefined) throw new Misuse(`A request has no member "${other}": only "execute", "arguments" and "id"`)
  if (args !== undefined && !isObject(args)) throw new Misuse('"arguments" must be a JSON object')
  return { command: execute, args, id }
}

/** The arguments of a command, as a JSON object. @throws Misuse */
export function parseArguments(text: string): object {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw new Misuse(`The arguments are no JSON: ${messageOf(error)}; they look like '{"node": "db.root"}'`, { cause: error })
  }
  if (!isObject(value)) throw new Misuse(`The arguments must be a JSON object, such as '{"node": "db.root"}'`)
  return value
}

const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null && !Array.isArray(value)

/** A tree without a prototype, so that no key means anything. */
type Tree = { [key: string]: unknown }

const emptyTree = () => Object.create(null) as Tree

/** `file.driver=null-co` is `{"file": {"driver": "null-co"}}`. A value with spaces, or JSON, goes into quotes where it has spaces. */
function parsePairs(text: string): object {
  const tree = emptyTree()
  const pair = /\s*([^\s=]+)=("(?:[^"\\]|\\.)*"|'[^']*'|(?:[^\s"']\S*)?)(?=\s|$)/y
  while (pair.lastIndex < text.length) {
    const at = pair.lastIndex
    const [, key, value] = pair.exec(text) ?? []
    if (key === undefined || value === undefined) {
      throw new Misuse(`Cannot read ${JSON.stringify(text.slice(at).trim())}; arguments are key=value, or a JSON object`)
    }
    place(tree, key, valueOf(value))
  }
  return tree
}

function place(tree: Tree, key: string, value: unknown) {
  const path = key.split('.')
  const last = path.pop()!
  let inner = tree
  for (const part of path) {
    const next = (inner[part] ??= emptyTree())
    if (!isObject(next)) throw new Misuse(`"${part}" of ${key} has a value already`)
    inner = next as Tree
  }
  if (inner[last] !== undefined) throw new Misuse(`${key} has a value already`)
  inner[last] = value
}

function valueOf(text: string): unknown {
  if (text.startsWith('"')) return parseValue(text)
  const bare = text.startsWith("'") ? text.slice(1, -1) : text
  if (/^[[{]/.test(bare) || /^-?\d+$/.test(bare) || bare === 'true' || bare === 'false') return parseValue(bare)
  return bare
}

function parseValue(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch (error) {
    throw new Misuse(`${text} is no JSON: ${messageOf(error)}`, { cause: error })
  }
}
