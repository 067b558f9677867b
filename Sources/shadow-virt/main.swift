import Commands
import Glibc

/// What runs inside the service comes from `Service` and `Replication`; the command line knows them through these hooks only.
let table = CommandTable(
    serve: { _, _ in
        fputs("error: This build has no service\n", stderr)
        return ExitCode.failed
    },
    worker: { _ in
        fputs("error: This build has no worker\n", stderr)
        return ExitCode.failed
    })
exit(table.main())
