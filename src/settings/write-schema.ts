// Writes config/stillpoint.schema.json, for editors that complete and check the configuration as it is written (npm run schema).

import { writeFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { jsonSchema } from './schema.ts'

export const schemaText = `${JSON.stringify(jsonSchema(), null, 2)}\n`

if (import.meta.main)
  await writeFile(fileURLToPath(new URL('../../../config/stillpoint.schema.json', import.meta.url)), schemaText)
