import ControlProtocol
import Foundation
import Platform

/// The figures of each shadow of a guest, on its primary's side. `DomainMetrics` has those of the best one.
enum ShadowMetrics {
    typealias Sample = MetricFamily.Sample
    typealias Label = MetricFamily.Label

    typealias Definition = MetricDefinition<ShadowStatus>

    /// Without `peer`, which names the best shadow's host: a series must not break off because another shadow is the best now.
    static func labels(_ domain: DomainStatus, _ shadow: ShadowStatus) -> [Label] {
        [Label("domain", domain.domain), Label("uuid", domain.uuid), Label("shadow_host", shadow.peer)]
    }

    static let definitions: [Definition] = [
        Definition("shadow_state", .gauge, "1 for the state that the shadow is in, 0 for all others", samples: { shadow in
            ProtectionState.allCases.map { Sample(shadow.state == $0 ? 1 : 0, labels: [Label("state", $0.rawValue)]) }
        }),
        Definition("shadow_rpo_seconds", .gauge, "What would be lost if the guest went on from this shadow now: age of its last committed epoch's capture",
                   value: { $0.rpoMs.map { $0 / 1000 } }),
        Definition("shadow_last_commit_age_seconds", .gauge, "Time since this shadow committed an epoch", value: { $0.lastCommitAgeMs.map { $0 / 1000 } }),
        Definition("shadow_lag_epochs", .gauge, "Captured epochs that this shadow has not committed", value: { Double($0.lagEpochs) }),
        Definition("shadow_lag_bytes", .gauge, "Bytes of captured epochs that wait in memory for this shadow", value: { Double($0.lagBytes) }),
        Definition("shadow_epochs_committed_total", .counter, "Number of the last epoch that this shadow committed; begins anew with each first copy",
                   value: { Double($0.committedEpoch) }),
        Definition("shadow_transferred_bytes_total", .counter, "Bytes of epochs that were sent to this shadow since the present capture began", value: { Double($0.bytesSent) }),
    ]

    static func families(_ status: StatusReport) -> [MetricFamily] {
        let shadows = status.domains.filter { $0.role == .primary }.flatMap { domain in (domain.shadows ?? []).map { (labels: labels(domain, $0), subject: $0) } }
        return definitions.map { $0.family(shadows) }
    }
}
