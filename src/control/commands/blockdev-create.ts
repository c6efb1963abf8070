// QMP's blockdev-create.

import { z } from 'zod'
import { NotSupported } from '../../base/errors.ts'
import { startCreate } from '../../jobs/create.ts'
import { blockdevCreateOptions } from '../blockdev-create-options.ts'
import { command } from '../command.ts'

export const blockdevCreate = command({
  name: 'blockdev-create',
  summary:
    'Starts a job that makes a new image, or a new file. It stays until it is dismissed: whether it went well is told there.',
  arguments: z.strictObject({ 'job-id': z.string(), options: blockdevCreateOptions }),
  async run({ 'job-id': id, options }, context) {
    const driver = context.graph.drivers.find(({ name }) => name === options.driver)
    if (!driver?.creation) throw new NotSupported('Driver does not support blockdev-create')
    await startCreate(context, id, driver, options)
  },
})
