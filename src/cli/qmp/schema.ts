// What a command of the control socket takes, from query-qmp-schema (QEMU's qapi/introspect.json): for help and completion.

import { QmpError, type QmpClient } from '../../control/qmp-client.ts'

/** One entry; which members it has depends on its meta-type. */
interface SchemaInfo {
  readonly name: string
  readonly 'meta-type': string
  readonly 'arg-type'?: string
  readonly members?: readonly Member[] | readonly { readonly type: string }[]
  readonly tag?: string
  readonly variants?: readonly { readonly case: string; readonly type: string }[]
  readonly values?: readonly string[]
  readonly 'element-type'?: string
  readonly 'json-type'?: string
}

interface Member {
  readonly name: string
  readonly type: string
  /** Present where the member is optional. */
  readonly default?: unknown
}

export class Schema {
  readonly #byName: ReadonlyMap<string, SchemaInfo>

  constructor(entries: readonly SchemaInfo[]) {
    this.#byName = new Map(entries.map(entry => [entry.name, entry]))
  }

  /** Of the server; one without entries where it does not tell. */
  static async of(client: QmpClient): Promise<Schema> {
    try {
      return new Schema((await client.execute('query-qmp-schema')) as readonly SchemaInfo[])
    } catch (error) {
      if (error instanceof QmpError) return new Schema([])
      throw error
    }
  }

  /** The arguments that a command may have, whatever the others are. */
  argumentsOf(command: string): readonly Member[] {
    const type = this.#argumentType(command)
    return type
      ? [...membersOf(type), ...(type.variants ?? []).flatMap(variant => membersOf(this.#byName.get(variant.type)))]
      : []
  }

  /** The words that an argument can be; none where it is no enumeration. */
  valuesOf(command: string, argument: string): readonly string[] {
    const member = this.argumentsOf(command).find(({ name }) => name === argument)
    const type = member && this.#byName.get(member.type)
    if (type?.['json-type'] === 'boolean') return ['true', 'false']
    return wordsOf(type)
  }

  /** A line for each argument, for people; undefined where there is no such command. */
  describe(command: string): string | undefined {
    if (this.#byName.get(command)?.['meta-type'] !== 'command') return undefined
    const type = this.#argumentType(command)
    const lines = [command, ...membersOf(type).map(member => `  ${this.#describeMember(member)}`)]
    for (const { case: word, type: variant } of type?.variants ?? []) {
      const members = membersOf(this.#byName.get(variant)).map(member => this.#describeMember(member))
      if (members.length > 0) lines.push(`  where ${type!.tag} is ${word}:`, ...members.map(member => `    ${member}`))
    }
    return `${lines.join('\n')}\n`
  }

  #argumentType(command: string) {
    const entry = this.#byName.get(command)
    return entry?.['arg-type'] === undefined ? undefined : this.#byName.get(entry['arg-type'])
  }

  #describeMember({ name, type, ...rest }: Member) {
    return `${name}: ${this.#nameOf(type)}${'default' in rest ? ', optional' : ''}`
  }

  #nameOf(name: string): string {
    const type = this.#byName.get(name)
    const words = wordsOf(type)
    if (words.length > 0) return words.join(' | ')
    if (type?.['element-type'] !== undefined) return `[${this.#nameOf(type['element-type'])}]`
    if (type?.['meta-type'] === 'alternate') return (type.members ?? []).map(({ type }) => this.#nameOf(type)).join(' or ')
    if (type?.['meta-type'] === 'object')
      return `{ ${membersOf(type)
        .map(({ name }) => name)
        .join(', ')} }`
    return name
  }
}

const membersOf = (type: SchemaInfo | undefined) => (type?.['meta-type'] === 'object' ? (type.members as readonly Member[]) : [])

/** QEMU 6.2 began to call the values of an enumeration its members. */
const wordsOf = (type: SchemaInfo | undefined): readonly string[] =>
  type?.['meta-type'] === 'enum' ? (type.values ?? (type.members as readonly Member[]).map(({ name }) => name)) : []
