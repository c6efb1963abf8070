// The text of a configuration file: its data, and where in the text each piece of it stands.

import {
  isAlias,
  isMap,
  isScalar,
  isSeq,
  LineCounter,
  parseDocument,
  visit,
  type Document,
  type Node,
  type Pair,
  type YAMLError,
} from 'yaml'

export interface Problem {
  /** Undefined where it is about the configuration as a whole. */
  readonly place?: Place | undefined
  readonly sentence: string
}

/** Somewhere in one of the files. */
export interface Place {
  readonly source: YamlSource
  /** In characters from the start of the text. */
  readonly offset: number
}

export type Path = readonly PropertyKey[]

/** A path as people write it: machines.db.disks, nbd[1].unix (counted from 1, as people do). */
export const nameOf = (path: Path) =>
  path.map((key, index) => (typeof key === 'number' ? `[${key + 1}]` : `${index > 0 ? '.' : ''}${String(key)}`)).join('')

/** Of a text, in a message. */
const MOST_SHOWN = 60

export class YamlSource {
  readonly #lines = new LineCounter()
  readonly #document: Document

  constructor(
    readonly text: string,
    readonly file: string,
  ) {
    this.#document = parseDocument(text, {
      lineCounter: this.#lines,
      prettyErrors: false,
      version: '1.2',
      strict: true,
      stringKeys: true,
    })
  }

  /** What makes it no YAML, or ambiguous YAML. */
  get problems(): Problem[] {
    const { errors, warnings } = this.#document
    const strange = this.#strangeBlank()
    // It makes everything around it something else.
    if (strange !== undefined) return [strange]
    return [
      ...[...errors, ...warnings].map(error => ({
        place: { source: this, offset: this.#placeOf(error) },
        sentence: this.#sentence(error),
      })),
      ...this.#printersQuotes(),
    ]
  }

  /** What looks like a blank, and is a letter to YAML: web pages and word processors have such. */
  #strangeBlank(): Problem | undefined {
    const [before, letter] = /^[ \t]*([\u00a0\u2000-\u200b\u202f\u3000])/mu.exec(this.text) ?? []
    if (before === undefined) return undefined
    const offset = this.text.search(/^[ \t]*[\u00a0\u2000-\u200b\u202f\u3000]/mu) + before.length - 1
    const code = letter!.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')
    return {
      place: { source: this, offset },
      sentence: `what indents this line is no plain blank (U+${code}); YAML wants spaces`,
    }
  }

  #printersQuotes(): Problem[] {
    const found: Problem[] = []
    visit(this.#document, {
      Scalar: (_, { type, value, range }) => {
        if (type === 'PLAIN' && typeof value === 'string' && /^[“”„‘’]/.test(value) && range)
          found.push({
            place: { source: this, offset: range[0] },
            sentence: 'a printer’s quote is a letter like any other to YAML; use " or \'',
          })
      },
    })
    return found
  }

  /** Of a quote that is never closed, where it was opened. */
  #placeOf({ code, message, pos: [offset] }: YAMLError): number {
    const quote = code === 'MISSING_CHAR' ? /^Missing closing (["'])quote/.exec(message)?.[1] : undefined
    return quote === undefined ? offset : Math.max(0, this.text.lastIndexOf(quote, offset))
  }

  get isEmpty() {
    const { contents } = this.#document
    return contents === null || (isScalar(contents) && contents.value === null)
  }

  /** The data. Aliases are followed, but not so often that a small file becomes a huge one: then it throws a ReferenceError. */
  get data(): unknown {
    return this.#document.toJS({ maxAliasCount: 100 }) as unknown
  }

  /** Line and column, both from 1. */
  positionOf(offset: number) {
    const { line, col } = this.#lines.linePos(offset)
    return { line, column: col }
  }

  /** Where a value begins; where there is none, where the nearest value around it does. */
  offsetOf(path: Path): number | undefined {
    let node: unknown = this.#document.contents
    let offset = begin(node)
    for (const key of path) {
      const pair = this.#entry(node, key)
      if (!pair) break
      node = pair.value
      offset = begin(node) ?? begin(pair.key) ?? offset
    }
    return offset
  }

  /** Where a key itself begins. */
  keyOffsetOf(path: Path): number | undefined {
    const pair = this.#entry(this.nodeAt(path.slice(0, -1)), path.at(-1)!)
    return begin(pair?.key) ?? this.offsetOf(path)
  }

  has(path: Path): boolean {
    return this.#entry(this.nodeAt(path.slice(0, -1)), path.at(-1)!)?.value !== undefined
  }

  /** What a person would call what is there. */
  kindOf(path: Path): string {
    const node = this.nodeAt(path)
    if (isMap(node)) return 'a map'
    if (isSeq(node)) return 'a list'
    const value = isScalar(node) ? node.value : undefined
    if (value === null || value === undefined) return 'empty'
    if (typeof value === 'boolean') return `${value}`
    if (typeof value === 'number') return `the number ${value}`
    const text = typeof value === 'string' && value.length > MOST_SHOWN ? `${value.slice(0, MOST_SHOWN)}...` : value
    return `the text ${JSON.stringify(text)}`
  }

  /** How many keys of the path lead to something here. */
  depthOf(path: Path): number {
    let node: unknown = this.#document.contents
    for (const [index, key] of path.entries()) {
      const entry = this.#entry(node, key)
      if (entry?.value === undefined) return index
      node = entry.value
    }
    return path.length
  }

  nodeAt(path: Path): unknown {
    let node: unknown = this.#document.contents
    for (const key of path) node = this.#entry(node, key)?.value
    return this.#follow(node)
  }

  #entry(node: unknown, key: PropertyKey): { key?: unknown; value: unknown } | undefined {
    const collection = this.#follow(node)
    if (isSeq(collection)) return { value: collection.items[Number(key)] }
    if (!isMap(collection)) return undefined
    return collection.items.find((pair: Pair) => isScalar(pair.key) && String(pair.key.value) === String(key))
  }

  #follow(node: unknown): unknown {
    return isAlias(node) ? node.resolve(this.#document) : node
  }

  #sentence({ code, message, pos }: YAMLError): string {
    if (code === 'MISSING_CHAR' && message.startsWith('Missing closing')) return 'a quote is opened here and never closed'
    if (code === 'BLOCK_AS_IMPLICIT_KEY' || code === 'BLOCK_IN_FLOW')
      return 'a text with ": " in it must be in quotes; and a key of its own needs a line of its own'
    if (code === 'MULTILINE_IMPLICIT_KEY') return 'a key ends with ":" and a blank; one of them is missing here'
    const open = /must .*end with a ([}\]])/.exec(message)?.[1]
    if (open !== undefined)
      return `a "${open}" is missing: something that was opened before is not closed, or not indented enough`
    if (code === 'BAD_INDENT' && message.startsWith('All ')) return 'this line is indented otherwise than those it belongs to'
    if (code === 'TAB_AS_INDENT') return 'a tab indents this line; YAML wants spaces'
    if (code === 'DUPLICATE_KEY') {
      const key = /^[^\s:#,{}[\]]+/.exec(this.text.slice(pos[0]))?.[0] ?? 'key'
      return `the key "${key}" is here for the second time; keep one of them`
    }
    if (code === 'NON_STRING_KEY') return 'a key must be a plain word'
    if (code === 'BAD_ALIAS') return 'a text that begins with "*" must be in quotes: YAML takes it for the name of something else'
    if (code === 'BAD_SCALAR_START') return 'a text that begins with "@", "`" or "%" must be in quotes'
    if (code === 'MULTIPLE_DOCS') return 'a second document begins here; the file may hold one'
    return `this is not YAML: ${message.split('\n')[0]}`
  }
}

const begin = (node: unknown): number | undefined => (node as Node | null | undefined)?.range?.[0]
