import Configuration
import ControlProtocol
import Metrics
import Orchestration
import Platform

/// /metrics from what the service has in memory: a scrape asks neither libvirt nor a guest's QEMU.
enum MetricsEndpoint {
    /// Serves on a thread of its own, when the configuration says where.
    static func start(_ configuration: ServiceConfiguration, _ registry: Registry, libvirtIsConnected: @escaping @Sendable () -> Bool) {
        guard let address = configuration.metricsListen else { return }
        if !address.isLoopback {
            Log.warning("metrics_listen is \(address): whoever reaches it reads the names of guests and hosts, without a password. "
                + "Use loopback, or a network for administrators")
        }
        let server = MetricsServer {
            let status = StatusReport(host: configuration.hostName, version: ProductVersion.text, time: Timestamp.now,
                                      domains: (try? registry.status(of: nil)) ?? [])
            return ServiceMetrics.families(status, events: registry.environment.events.counts, libvirtIsConnected: libvirtIsConnected())
                + DomainMetrics.families(status)
                + HealthMetrics.families(registry.ownHealth)
        }
        startThread("metrics-accept") { server.run(at: Endpoint(address: address.host, port: address.port)) }
    }
}
