// As much XML as S3 speaks: elements with text in them. Attributes are passed over, and no entity expands to more than a character.
// Proxies and gateways write it anew in ways of their own: CDATA, a prefix for each name, attributes with a ">" in them.

import { IoError } from '../../src/base/errors.ts'

export interface Element {
  /** Without a prefix. */
  readonly name: string
  readonly children: readonly Element[]
  /** Its own text, that of its children left out. */
  readonly text: string
}

interface Open extends Element {
  readonly tag: string
  readonly children: Element[]
  text: string
}

const MAX_DEPTH = 16
const entities: Record<string, string> = { lt: '<', gt: '>', amp: '&', quot: '"', apos: "'" }

/** The root element. IoError where the text is no such thing. */
export function parseXml(text: string): Element {
  const root: Open = { tag: '', name: '', children: [], text: '' }
  const open = [root]
  // Some text, and then a declaration, a comment, CDATA or a tag.
  const token =
    /([^<]*)<(?:\?[^>]*|!--[^]*?--|!\[CDATA\[([^]*?)\]\]|(\/?)([^\s/>!?][^\s/>]*)(?:\s(?:[^>"']|"[^"]*"|'[^']*')*?)?(\/?))>/y
  let end = 0
  for (let match = token.exec(text); match; match = token.exec(text)) {
    end = token.lastIndex
    const [, before = '', verbatim = '', closes, tag, empty] = match
    const inner = open[open.length - 1]!
    inner.text += unescape(before) + verbatim
    if (tag === undefined) continue
    if (closes) {
      if (inner.tag !== tag) throw broken(`</${tag}> closes <${inner.tag}>`)
      open.pop()
      continue
    }
    if (open.length > MAX_DEPTH) throw broken('it is too deep')
    const element: Open = { tag, name: tag.slice(tag.indexOf(':') + 1), children: [], text: '' }
    inner.children.push(element)
    if (!empty) open.push(element)
  }
  const [found, ...more] = root.children
  if (!found || more.length > 0 || open.length > 1 || (root.text + text.slice(end)).trim() !== '') throw broken('it has no end')
  return found
}

const broken = (why: string) => new IoError(`the store’s reply is not the XML it should be: ${why}`)

function unescape(text: string) {
  return text.replaceAll(
    /&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w{1,8}));/gi,
    (all, decimal?: string, hex?: string, name?: string) => {
      if (name !== undefined) return entities[name] ?? all
      const code = decimal === undefined ? Number.parseInt(hex!, 16) : Number(decimal)
      return code <= 0x10ffff ? String.fromCodePoint(code) : all
    },
  )
}

const escapes: Record<string, string> = { '<': '&lt;', '>': '&gt;', '&': '&amp;', '"': '&quot;', "'": '&apos;' }
export const escapeXml = (text: string) => text.replaceAll(/[<>&"']/g, character => escapes[character]!)

export const childrenOf = (element: Element, name: string) => element.children.filter(child => child.name === name)
/** The text of the first child of this name. */
export const textOf = (element: Element, name: string) => element.children.find(child => child.name === name)?.text
