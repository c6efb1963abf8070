// The configuration as it counts, written as a configuration: what the files say together, with every default filled in.

import { stringify } from 'yaml'
import { jsonSchema } from './schema.ts'
import type { Settings } from './settings.ts'

interface Schema {
  readonly type?: unknown
  readonly default?: unknown
  readonly properties?: Record<string, Schema>
  readonly additionalProperties?: Schema | false
  readonly items?: Schema
}

type Data = Record<string, unknown>

/** What the files say, of which `settings` were made. Read again, it gives the same settings. Secrets are named, as in the files. */
export function effective(data: unknown, settings: Settings): Data {
  const all = fill(data, jsonSchema() as Schema) as Data & { scratch: Data; control: Data }
  const machines = Object.entries(all['machines'] as Data).map(([machine, said]) => {
    const disks = Object.entries((said as { disks: Data }).disks).map(([disk, options]) => {
      const { image, format, bitmaps, readOnly } = settings.machines[machine]!.disks[disk]!
      return [disk, { ...(options as Data), image, ...(format !== 'qcow2' && !readOnly && { bitmaps }) }]
    })
    return [machine, { ...(said as Data), disks: Object.fromEntries(disks) as Data }]
  })
  return {
    ...all,
    state: settings.state,
    control: { ...all.control, ...settings.control },
    machines: Object.fromEntries(machines) as Data,
    scratch: { ...all.scratch, path: settings.scratch.path },
  }
}

export const yamlOf = (data: unknown) => stringify(data, { lineWidth: 0 })

/** With the defaults of the schema where nothing is said. */
function fill(data: unknown, schema: Schema): unknown {
  if (Array.isArray(data)) return data.map((item: unknown) => (schema.items ? fill(item, schema.items) : item))
  if (typeof data !== 'object' || data === null) return data
  const said = new Map(Object.entries(data))
  const { properties = {}, additionalProperties: others } = schema
  for (const [key, value] of said) {
    const below = Object.hasOwn(properties, key) ? properties[key] : others || undefined
    if (below) said.set(key, fill(value, below))
  }
  for (const [key, below] of Object.entries(properties)) {
    if (said.has(key) || below.default === undefined) continue
    said.set(key, fill(below.default, below))
  }
  return Object.fromEntries(said)
}
