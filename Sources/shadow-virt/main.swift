import Commands
import Foundation

/// What runs inside the service comes from `Service` and `Replication`; the command line knows them through these hooks only.
let table = CommandTable(
    serve: { _, _ in missing("service") },
    worker: { _ in missing("worker") })
exit(table.main())

@Sendable func missing(_ part: String) -> Int32 {
    FileHandle.standardError.write(Data("error: This build has no \(part)\n".utf8))
    return ExitCode.failed
}
