use super::*;

#[test]
fn every_contract_answers_before_its_deadline() {
    for platform in Platform::ALL {
        let contract = platform.ack_contract();
        assert!(contract.budget < contract.deadline, "{platform}");
        assert!(contract.success.is_success(), "{platform}");
        let unavailable = contract.unavailable;
        assert!(unavailable.is_server_error() || unavailable == 429, "{platform}");
    }
}

#[test]
fn a_platform_has_one_name() {
    for platform in Platform::ALL {
        assert_eq!(serde_json::to_value(platform).unwrap(), platform.name());
        assert_eq!(PlatformName::parse(platform.name()).unwrap(), platform.to_name());
    }
}

#[test]
fn a_default_check_can_be_made() {
    for platform in Platform::ALL {
        assert!(!matches!(platform.default_check(), Some(Err(_))), "{platform}");
    }
}
