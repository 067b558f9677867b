import Commands
import Configuration
import Foundation
import Health
import Libvirt
import Orchestration
import Replication
import Service

// The command line knows the service and the workers through these hooks only.
let table = CommandTable(
    serve: { configuration, _ in Daemon.run(configuration) },
    worker: { $0 == BMCWorker.arguments ? BMCWorker.run() : WorkerMain.run($0) },
    doctor: { request, configuration in
        EventLoop.start()
        // What is wrong with either is for the report to say.
        let connection = Result { try Connection.open(configuration.libvirtURI) }
        defer { if case .success(let connection) = connection { connection.close() } }
        let environment = HostEnvironment(configuration: configuration, secretBytes: try? configuration.loadSecret()) { try connection.get() }
        return try Doctor(environment: environment).report(domain: request.domain, to: request.to)
    })
exit(table.main())
