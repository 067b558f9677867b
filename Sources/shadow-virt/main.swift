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
        let connection = try Connection.open(configuration.libvirtURI)
        defer { connection.close() }
        let environment = HostEnvironment(configuration: configuration, secretBytes: try configuration.loadSecret()) { connection }
        return try Doctor(environment: environment).report(domain: request.domain, to: request.to)
    })
exit(table.main())
