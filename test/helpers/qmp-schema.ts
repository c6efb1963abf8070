// Reads what query-qmp-schema says, as programs that probe for features do.

export interface SchemaEntry {
  readonly name: string
  readonly 'meta-type': string
  readonly 'json-type'?: string
  readonly 'arg-type'?: string
  readonly 'ret-type'?: string
  readonly 'element-type'?: string
  readonly members?: readonly { readonly name: string; readonly type: string; readonly default?: null }[]
  readonly values?: readonly string[]
  readonly tag?: string
  readonly variants?: readonly { readonly case: string; readonly type: string }[]
}

export class QmpSchema {
  readonly #byName: ReadonlyMap<string, SchemaEntry>

  constructor(readonly entries: readonly SchemaEntry[]) {
    this.#byName = new Map(entries.map(entry => [entry.name, entry]))
  }

  get(name: string | undefined): SchemaEntry {
    const entry = this.#byName.get(name ?? '')
    if (!entry) throw new Error(`the schema has no '${name}'`)
    return entry
  }

  /** Which of the commands and events there are. */
  names(metaType: 'command' | 'event') {
    return this.entries.filter(entry => entry['meta-type'] === metaType).map(({ name }) => name)
  }

  /**
   * What this one has and the other has not, as paths: `transaction/actions/[]/+abort/data`. `+` is a case of a union or a value of an
   * enumeration.
   */
  beyond(other: QmpSchema, name: string): string[] {
    const [mine, theirs] = [this.get(name), other.get(name)]
    const found: string[] = []
    const seen = new Set<string>()
    const compare = (a: SchemaEntry, b: SchemaEntry, path: string) => {
      if (seen.has(`${a.name} ${b.name}`)) return
      seen.add(`${a.name} ${b.name}`)
      if (a['meta-type'] !== b['meta-type'] || a['json-type'] !== b['json-type']) {
        found.push(`${path} is ${a['json-type'] ?? a['meta-type']}, not ${b['json-type'] ?? b['meta-type']}`)
        return
      }
      if (a['meta-type'] === 'array') compare(this.get(a['element-type']), other.get(b['element-type']), `${path}/[]`)
      for (const value of a.values ?? []) if (!b.values!.includes(value)) found.push(`${path}/+${value}`)
      if (a['meta-type'] === 'alternate') this.#alternates(a, b, other, path, compare, found)
      else members(a, b, path)
      for (const { case: value, type } of a.variants ?? []) {
        const variant = b.variants?.find(other => other.case === value)
        if (variant) compare(this.get(type), other.get(variant.type), `${path}/+${value}`)
      }
    }
    const members = (a: SchemaEntry, b: SchemaEntry, path: string) => {
      for (const { name, type, ...rest } of a.members ?? []) {
        if (name === undefined) continue
        const counterpart = b.members?.find(member => member.name === name)
        if (!counterpart) found.push(`${path}/${name}`)
        else {
          if ('default' in rest !== 'default' in counterpart) found.push(`${path}/${name} is optional in one only`)
          if (a['meta-type'] === 'object') compare(this.get(type), other.get(counterpart.type), `${path}/${name}`)
        }
      }
    }
    for (const side of ['arg-type', 'ret-type'] as const)
      if (mine[side] !== undefined)
        compare(this.get(mine[side]), other.get(theirs[side]), side === 'arg-type' ? name : `${name}=`)
    return found
  }

  /** Each option is compared with the one of the same kind. */
  #alternates(
    a: SchemaEntry,
    b: SchemaEntry,
    other: QmpSchema,
    path: string,
    compare: (a: SchemaEntry, b: SchemaEntry, path: string) => void,
    found: string[],
  ) {
    const kind = (entry: SchemaEntry) => `${entry['meta-type']} ${entry['json-type'] ?? ''}`
    for (const { type } of a.members!) {
      const option = this.get(type)
      const counterpart = b.members!.map(member => other.get(member.type)).find(entry => kind(entry) === kind(option))
      if (counterpart) compare(option, counterpart, path)
      else found.push(`${path} may be ${kind(option)}`)
    }
  }
}
